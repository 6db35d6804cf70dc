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

/// What came of an attempt to go on with a task.
enum UbProgress
{
    UB_WAITS, //!< nothing: another task has to go on first
    UB_MOVED, //!< a step was done
    UB_OVER   //!< a step was done, and it was the last
};

/**
 * @ingroup ub-fabric
 * @brief Threads that do a fixed number of tasks, each in steps.
 *
 * The steps of one task are done one after another, by any thread; steps of different tasks at
 * the same time. A task says itself whether its next step can be done yet, so tasks may wait for
 * each other, and a thread that finds one waiting goes on with another. A thread looks for work
 * first where it found it before, so that as a rule a task's data are in its caches.
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
     * Do all tasks to their end.
     * @param [in] work Does the next step of a task, if it can be done. What a task waits for must
     * be told by an atomic variable that the other task has written.
     */
    void Run(const std::function<UbProgress(uint32_t)>& work);

  private:
    /// Tasks do not share a line of the cache: each is written by whoever does a step.
    struct alignas(64) Task
    {
        std::atomic<bool> isTaken{false}; //!< a thread is at it
        bool isOver{true}; //!< no more steps in this run; belongs to who has taken it
    };

    /**
     * What a thread does all its life.
     * @param [in] thread Its number.
     */
    void Live(uint32_t thread);

    /**
     * Do steps until all tasks are over.
     * @param [in] thread Number of the thread.
     */
    void Work(uint32_t thread);

    /**
     * Do the next step of a task, if nobody else is at it.
     * @param [in] task The task.
     * @return Whether a step was done.
     */
    bool Try(Task& task);

    /**
     * Wait until a number changes: in vain for a while, as that is sooner over than sleeping and
     * being woken, then asleep.
     * @param [in] number The number.
     * @param [in] old What it was.
     */
    static void Await(const std::atomic<uint32_t>& number, uint32_t old);

    uint32_t m_nThreads;                                        //!< number of threads
    uint32_t m_nTasks;                                          //!< number of tasks
    const std::function<UbProgress(uint32_t)>* m_work{nullptr}; //!< of this run
    std::unique_ptr<Task[]> m_tasks;                            //!< the tasks
    std::atomic<uint32_t> m_runs{0};                            //!< number of the run
    std::atomic<uint32_t> m_left{0};                            //!< tasks that are not over
    std::atomic<uint32_t> m_steps{0};                           //!< steps done
    std::atomic<bool> m_isOver{false};                          //!< no more runs
    std::vector<std::thread> m_threads;                         //!< the threads but the caller's
};

} // namespace ns3

#endif // UB_WORKERS_H
