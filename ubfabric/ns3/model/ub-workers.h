// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_WORKERS_H
#define UB_WORKERS_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Threads that work on a fixed number of tasks, round after round.
 *
 * Each task is done once a round, by one thread; a round is over when all are done. Which thread
 * does what is not fixed, so a task may share nothing with the others of its round. A thread
 * begins its search for work where it began the last time, so that as a rule it finds the tasks
 * whose data are in its caches.
 */
class UbWorkers
{
  public:
    /**
     * @param [in] nThreads Number of threads, the caller's own included.
     * @param [in] nTasks Number of tasks.
     */
    UbWorkers(uint32_t nThreads, uint32_t nTasks);
    ~UbWorkers();

    UbWorkers(const UbWorkers&) = delete;
    UbWorkers& operator=(const UbWorkers&) = delete;

    /**
     * Do a round.
     * @param [in] work Called once for each task, with its number.
     */
    void Run(const std::function<void(uint32_t)>& work);

  private:
    /**
     * What a thread does all its life.
     * @param [in] thread Its number.
     */
    void Live(uint32_t thread);

    /**
     * Do tasks of a round that nobody has taken.
     * @param [in] thread Number of the thread.
     * @param [in] round Number of the round.
     */
    void Work(uint32_t thread, uint64_t round);

    uint32_t m_nThreads;                                  //!< number of threads
    uint32_t m_nTasks;                                    //!< number of tasks
    const std::function<void(uint32_t)>* m_work{nullptr}; //!< of this round
    std::atomic<uint64_t> m_round{0};                     //!< number of the round
    std::atomic<uint32_t> m_left{0};                      //!< tasks not done
    std::atomic<bool> m_isOver{false};                    //!< no more rounds
    std::unique_ptr<std::atomic<uint64_t>[]> m_taken;     //!< last round of each task
    std::vector<std::thread> m_threads;                   //!< the threads but the caller's
};

} // namespace ns3

#endif // UB_WORKERS_H
