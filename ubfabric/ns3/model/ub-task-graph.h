// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_TASK_GRAPH_H
#define UB_TASK_GRAPH_H

#include "ub-endpoint-process.h"

#include <functional>
#include <map>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief What a caller loads at once: flows and tasks of, usually, one layer.
 *
 * All arrays belong to the caller and stay in place until the chunk is complete.
 */
struct UbChunkArrays
{
    UbFlowRecord* flows{nullptr};       //!< the flows
    uint32_t nFlows{0};                 //!< number of flows
    UbTaskRecord* tasks{nullptr};       //!< the tasks, in the order of their streams
    uint32_t nTasks{0};                 //!< number of tasks
    uint64_t firstTask{0};              //!< number of the first task in the trace
    const uint32_t* sendOrder{nullptr}; //!< flows grouped by sending task
    const uint64_t* depStart{nullptr};  //!< [nTasks + 1] start of a task's entries in `deps`
    const uint64_t* deps{nullptr};      //!< numbers in the trace of the tasks depended on
    const uint32_t* openOrder{nullptr}; //!< open-loop flows in order of their start
    UbFlowAccount* accounts{nullptr};   //!< [nFlows] where the time went, or nullptr
    uint32_t nOpen{0};                  //!< number of open-loop flows
    bool isLast{true};                  //!< whether no chunk follows
};

/**
 * @ingroup ub-fabric
 * @brief The tasks of all ranks: what closes the loop between computing and communicating.
 *
 * Tasks of a stream run one after another. A task starts when its stream is free and the tasks
 * it depends on have finished; it takes its duration, then issues its flows, and finishes when
 * those are issued and the flows it waits for are seen. Chunks come while the simulation stands
 * still: it stops at the very instant at which a stream has run out of tasks and more chunks
 * are to come, so loading layer by layer gives the same times as loading all at once.
 *
 * Tasks whose durations run on one die at a time share its memory. Each asks for the part of its
 * rate that it would use alone, `memoryPs / durationPs`; where all together ask for more than there
 * is, the durations of all of them go by slower, by the same factor. Tasks that do not use the
 * memory, and what a task does after its duration, are left alone.
 */
class UbTaskGraph
{
  public:
    /**
     * @param [in] endpoints The endpoints, whose event queue the tasks use.
     */
    explicit UbTaskGraph(UbEndpointProcess& endpoints);

    /**
     * Load a chunk.
     * @param [in] arrays The chunk.
     * @param [in] nowPs The time.
     * @return Number of the chunk, counted from 0; -1 if too many chunks are at work.
     */
    int64_t AddChunk(const UbChunkArrays& arrays, int64_t nowPs);

    /**
     * @return Number of a complete chunk, whose arrays the caller may take back; -1 if none.
     */
    int64_t TakeComplete();

    /**
     * @return Whether a stream ran out of tasks while chunks are to come.
     */
    bool NeedsChunk() const
    {
        return m_nDry > 0 && !m_isLast;
    }

    /**
     * @return Whether more chunks are to come.
     */
    bool ExpectsChunk() const
    {
        return !m_isLast;
    }

    /**
     * @return Flows and tasks that are loaded and not finished.
     */
    uint64_t Unfinished() const;

    /**
     * @return Name of the first task that has not finished: its number in the trace, or UB_NEVER.
     */
    uint64_t FirstUnfinishedTask() const;

    /**
     * A task's duration is over.
     * @param [in] reference The task.
     * @param [in] nowPs The time.
     */
    void TimerOver(uint32_t reference, int64_t nowPs);

    /**
     * The duration of a task that uses the memory of a die, or of several, is over.
     * @param [in] endpoint The die.
     * @param [in] nowPs The time.
     */
    void MemoryDue(uint32_t endpoint, int64_t nowPs);

    /**
     * The last message of a task is out.
     * @param [in] reference The task.
     * @param [in] nowPs The time.
     */
    void JobIssued(uint32_t reference, int64_t nowPs);

    /**
     * A flow's last byte is seen by its receiver.
     * @param [in] reference The flow.
     * @param [in] nowPs The time.
     */
    void FlowSeen(uint32_t reference, int64_t nowPs);

    /**
     * An open-loop flow starts.
     * @param [in] slot Slot of its chunk.
     * @param [in] nowPs The time.
     */
    void OpenFlow(uint32_t slot, int64_t nowPs);

    /**
     * Retire a chunk of which nothing is left.
     * @param [in,out] chunk The chunk.
     */
    void TryRetire(UbEndpointProcess::Chunk& chunk);

    /**
     * @param [in] hook Called for each flow seen, or empty; for trace sources.
     */
    void SetFlowHook(std::function<void(const UbFlowRecord&, int64_t)> hook)
    {
        m_flowHook = std::move(hook);
    }

  private:
    /// States of a task.
    enum State : uint32_t
    {
        WAITING = 0,   //!< not started
        RUNNING = 1,   //!< its duration runs
        ISSUING = 2,   //!< its flows are being issued
        RECEIVING = 3, //!< it waits for flows
        FINISHED = 4,  //!< done
    };

    /// Tasks of a rank that run one after another.
    struct Stream
    {
        uint32_t head{UB_NONE}; //!< the task that runs, or is next
        uint32_t tail{UB_NONE}; //!< the last task
        bool isUsed{false};     //!< ever had a task
    };

    /// The memory of a die.
    struct Memory
    {
        std::vector<uint32_t> running; //!< tasks that use it, in the order of their streams
        int64_t sincePs{0};            //!< up to when their durations are settled
        int64_t duePs{UB_NEVER};       //!< when the first of them is over, as things stand
        double slowdown{1};            //!< time in which 1 ps of their durations goes by, in ps
    };

    /// One task that depends on another.
    struct Edge
    {
        uint32_t task; //!< the task that waits
        uint32_t next; //!< next edge of the same origin
    };

    /**
     * @param [in] reference A task.
     * @return Its record.
     */
    UbTaskRecord& Task(uint32_t reference)
    {
        return m_endpoints.ChunkOf(reference).tasks[UbEndpointProcess::IndexOf(reference)];
    }

    /**
     * Start the head of a stream if nothing holds it.
     * @param [in] stream The stream.
     * @param [in] nowPs The time.
     */
    void TryStart(Stream& stream, int64_t nowPs);

    /**
     * Take what has gone by from the durations of the tasks that use a memory.
     * @param [in,out] memory The memory.
     * @param [in] nowPs The time.
     */
    void Settle(Memory& memory, int64_t nowPs);

    /**
     * @param [in] memory A memory, settled.
     * @param [in] reference A task that uses it.
     * @return Time until the task's duration is over, as things stand.
     */
    int64_t LeftPs(const Memory& memory, uint32_t reference);

    /**
     * Divide a memory, which is settled, among the tasks that use it, and set its timer anew.
     * @param [in] endpoint The die.
     * @param [in] nowPs The time.
     */
    void Share(uint32_t endpoint, int64_t nowPs);

    /**
     * Finish a task if all it does is done.
     * @param [in] reference The task.
     * @param [in] nowPs The time.
     */
    void TryFinish(uint32_t reference, int64_t nowPs);

    /**
     * Find a task by its number in the trace.
     * @param [in] number The number.
     * @return The reference, or UB_NONE if its chunk is complete.
     */
    uint32_t Find(uint64_t number) const;

    /**
     * @param [in] number Number in the trace of a task that is in no chunk at work.
     * @param [in] nowPs The time.
     * @return When it finished; now if it was never loaded.
     */
    int64_t FinishPs(uint64_t number, int64_t nowPs) const;

    UbEndpointProcess& m_endpoints;                      //!< the endpoints
    std::vector<Stream> m_streams;                       //!< all streams
    std::vector<Memory> m_memories;                      //!< by endpoint
    std::vector<uint32_t> m_over;                        //!< tasks of a memory that are over
    std::vector<Edge> m_edges;                           //!< pool of edges
    std::vector<uint32_t> m_freeEdges;                   //!< unused edges
    std::vector<uint32_t> m_job;                         //!< flows of the job being started
    std::vector<uint64_t> m_complete;                    //!< complete chunks not yet taken back
    std::map<uint64_t, std::vector<int64_t>> m_finished; //!< finish of tasks of complete chunks,
                                                         //!< by number of the first
    std::function<void(const UbFlowRecord&, int64_t)> m_flowHook; //!< for trace sources
    uint64_t m_nChunks{0};                                        //!< chunks loaded so far
    uint64_t m_nDry{0};                                           //!< streams that ran out of tasks
    bool m_isLast{true};                                          //!< whether no chunk follows
};

} // namespace ns3

#endif // UB_TASK_GRAPH_H
