// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-workers.h"

namespace ns3
{

UbWorkers::UbWorkers(uint32_t nThreads, uint32_t nTasks)
    : m_nThreads(nThreads),
      m_nTasks(nTasks),
      m_taken(std::make_unique<std::atomic<uint64_t>[]>(nTasks))
{
    for (uint32_t thread = 1; thread < nThreads; ++thread)
    {
        m_threads.emplace_back(&UbWorkers::Live, this, thread);
    }
}

UbWorkers::~UbWorkers()
{
    m_isOver = true;
    ++m_round;
    m_round.notify_all();
    for (std::thread& thread : m_threads)
    {
        thread.join();
    }
}

void
UbWorkers::Run(const std::function<void(uint32_t)>& work)
{
    m_work = &work;
    m_left = m_nTasks;
    const uint64_t round = ++m_round;
    m_round.notify_all();
    Work(0, round);
    for (uint32_t left = m_left; left != 0; left = m_left)
    {
        m_left.wait(left);
    }
}

void
UbWorkers::Live(uint32_t thread)
{
    uint64_t round = 0;
    while (true)
    {
        m_round.wait(round);
        if (m_isOver)
        {
            return;
        }
        round = m_round;
        Work(thread, round);
    }
}

void
UbWorkers::Work(uint32_t thread, uint64_t round)
{
    const uint32_t first = thread * m_nTasks / m_nThreads;
    for (uint32_t i = 0; i < m_nTasks; ++i)
    {
        const uint32_t task = first + i < m_nTasks ? first + i : first + i - m_nTasks;
        // A thread that is late finds all tasks of its round taken: nobody begins the next round
        // before they are done.
        uint64_t last = m_taken[task];
        if (last < round && m_taken[task].compare_exchange_strong(last, round))
        {
            (*m_work)(task);
            if (--m_left == 0)
            {
                m_left.notify_all();
            }
        }
    }
}

} // namespace ns3
