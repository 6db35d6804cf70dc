// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-workers.h"

namespace ns3
{

namespace
{

/// Looks at a number before a thread goes to sleep: tens of microseconds, a few times what it
/// takes to be woken.
constexpr uint32_t LOOKS = 2000;

/// Tell the processor that this thread waits.
inline void
Pause()
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

} // namespace

UbWorkers::UbWorkers(uint32_t nThreads, uint32_t nTasks)
    : m_nThreads(nThreads),
      m_nTasks(nTasks),
      m_tasks(std::make_unique<Task[]>(nTasks))
{
    for (uint32_t thread = 1; thread < nThreads; ++thread)
    {
        m_threads.emplace_back(&UbWorkers::Live, this, thread);
    }
}

UbWorkers::~UbWorkers()
{
    m_isOver = true;
    ++m_runs;
    m_runs.notify_all();
    for (std::thread& thread : m_threads)
    {
        thread.join();
    }
}

void
UbWorkers::Run(const std::function<UbProgress(uint32_t)>& work)
{
    m_work = &work;
    m_left = m_nTasks;
    for (uint32_t task = 0; task < m_nTasks; ++task)
    {
        // taken first: a thread that is late may still look at the tasks of the run before
        while (m_tasks[task].isTaken.exchange(true, std::memory_order_acquire))
        {
            Pause();
        }
        m_tasks[task].isOver = false;
        m_tasks[task].isTaken.store(false, std::memory_order_release);
    }
    ++m_runs;
    m_runs.notify_all();
    Work(0);
}

void
UbWorkers::Live(uint32_t thread)
{
    uint32_t runs = 0;
    while (true)
    {
        Await(m_runs, runs);
        if (m_isOver)
        {
            return;
        }
        runs = m_runs;
        Work(thread);
    }
}

void
UbWorkers::Work(uint32_t thread)
{
    const uint32_t first = thread * m_nTasks / m_nThreads;
    while (true)
    {
        // looked at before all else: whatever changes after that ends the wait below
        const uint32_t steps = m_steps;
        if (m_left == 0)
        {
            return;
        }
        bool hasMoved = false;
        for (uint32_t i = 0; i < m_nTasks && !hasMoved; ++i)
        {
            hasMoved = Try(m_tasks[first + i < m_nTasks ? first + i : first + i - m_nTasks]);
        }
        if (!hasMoved)
        {
            Await(m_steps, steps);
        }
    }
}

bool
UbWorkers::Try(Task& task)
{
    if (task.isTaken.load(std::memory_order_relaxed) ||
        task.isTaken.exchange(true, std::memory_order_acquire))
    {
        return false;
    }
    const UbProgress progress =
        task.isOver ? UB_WAITS : (*m_work)(static_cast<uint32_t>(&task - m_tasks.get()));
    task.isOver = task.isOver || progress == UB_OVER;
    task.isTaken.store(false, std::memory_order_release);
    if (progress == UB_WAITS)
    {
        return false;
    }
    if (progress == UB_OVER)
    {
        --m_left;
    }
    ++m_steps;
    m_steps.notify_all();
    return true;
}

void
UbWorkers::Await(const std::atomic<uint32_t>& number, uint32_t old)
{
    for (uint32_t look = 0; look < LOOKS; ++look)
    {
        if (number.load(std::memory_order_acquire) != old)
        {
            return;
        }
        Pause();
    }
    number.wait(old);
}

} // namespace ns3
