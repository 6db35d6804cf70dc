// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-task-graph.h"

#include <algorithm>
#include <cmath>

namespace ns3
{

UbTaskGraph::UbTaskGraph(UbEndpointProcess& endpoints)
    : m_endpoints(endpoints)
{
}

uint32_t
UbTaskGraph::Find(uint64_t number) const
{
    auto& chunks = m_endpoints.Chunks();
    for (uint32_t slot = 0; slot < chunks.size(); ++slot)
    {
        const auto& chunk = chunks[slot];
        if (chunk.isLive && number >= chunk.firstTask && number < chunk.firstTask + chunk.nTasks)
        {
            return UbEndpointProcess::Reference(slot,
                                                static_cast<uint32_t>(number - chunk.firstTask));
        }
    }
    return UB_NONE;
}

int64_t
UbTaskGraph::AddChunk(const UbChunkArrays& arrays, int64_t nowPs)
{
    auto& chunks = m_endpoints.Chunks();
    const uint64_t id = m_nChunks;
    const auto slot = static_cast<uint32_t>(id % chunks.size());
    UbEndpointProcess::Chunk& chunk = chunks[slot];
    if (chunk.isLive)
    {
        return -1;
    }
    ++m_nChunks;
    chunk = {};
    chunk.flows = arrays.flows;
    chunk.tasks = arrays.tasks;
    chunk.sendOrder = arrays.sendOrder;
    chunk.openOrder = arrays.openOrder;
    chunk.accounts = arrays.accounts;
    chunk.nFlows = arrays.nFlows;
    chunk.nTasks = arrays.nTasks;
    chunk.nOpen = arrays.nOpen;
    chunk.flowsLeft = arrays.nFlows;
    chunk.tasksLeft = arrays.nTasks;
    chunk.firstTask = arrays.firstTask;
    chunk.id = id;
    chunk.isLive = true;
    m_isLast = arrays.isLast;

    for (uint32_t i = 0; i < arrays.nFlows; ++i)
    {
        m_endpoints.Attend(arrays.flows[i].src);
        m_endpoints.Attend(arrays.flows[i].dst);
    }
    std::vector<uint32_t> touched;
    for (uint32_t i = 0; i < arrays.nTasks; ++i)
    {
        const uint32_t reference = UbEndpointProcess::Reference(slot, i);
        UbTaskRecord& task = arrays.tasks[i];
        task.readyPs = -1;
        task.startPs = -1;
        task.finishPs = -1;
        task.issuedPs = -1;
        task.arrivedPs = -1;
        task.depsLeft = 0;
        task.next = UB_NONE;
        task.successor = UB_NONE;
        task.state = WAITING;
        if (task.stream >= m_streams.size())
        {
            m_streams.resize(task.stream + 1);
        }
        Stream& stream = m_streams[task.stream];
        if (stream.head == UB_NONE)
        {
            m_nDry -= stream.isUsed ? 1 : 0;
            stream.isUsed = true;
            stream.head = reference;
            touched.push_back(task.stream);
        }
        else
        {
            Task(stream.tail).next = reference;
        }
        stream.tail = reference;
    }
    // a second pass, since a task may depend on a later one of the chunk
    for (uint32_t i = 0; i < arrays.nTasks; ++i)
    {
        UbTaskRecord& task = arrays.tasks[i];
        int64_t readyPs = 0;
        for (uint64_t at = arrays.depStart[i]; at < arrays.depStart[i + 1]; ++at)
        {
            const uint32_t origin = Find(arrays.deps[at]);
            if (origin == UB_NONE || Task(origin).state == FINISHED)
            {
                readyPs = std::max(readyPs,
                                   origin == UB_NONE ? FinishPs(arrays.deps[at], nowPs)
                                                     : Task(origin).finishPs);
                continue;
            }
            ++task.depsLeft;
            uint32_t edge;
            if (m_freeEdges.empty())
            {
                edge = static_cast<uint32_t>(m_edges.size());
                m_edges.emplace_back();
            }
            else
            {
                edge = m_freeEdges.back();
                m_freeEdges.pop_back();
            }
            m_edges[edge] = {UbEndpointProcess::Reference(slot, i), Task(origin).successor};
            Task(origin).successor = edge;
        }
        if (task.depsLeft == 0)
        {
            task.readyPs = readyPs;
        }
    }
    for (const uint32_t stream : touched)
    {
        TryStart(m_streams[stream], nowPs);
    }
    if (arrays.nOpen > 0)
    {
        m_endpoints.Push(std::max(nowPs, arrays.flows[arrays.openOrder[0]].startPs),
                         UbEndpointProcess::OPEN_FLOW,
                         0,
                         slot);
    }
    TryRetire(chunk);
    return static_cast<int64_t>(id);
}

int64_t
UbTaskGraph::TakeComplete()
{
    if (m_complete.empty())
    {
        return -1;
    }
    const auto least = std::min_element(m_complete.begin(), m_complete.end());
    const auto id = static_cast<int64_t>(*least);
    m_complete.erase(least);
    return id;
}

uint64_t
UbTaskGraph::Unfinished() const
{
    uint64_t left = 0;
    for (const auto& chunk : m_endpoints.Chunks())
    {
        left += chunk.isLive ? uint64_t{chunk.flowsLeft} + chunk.tasksLeft : 0;
    }
    return left;
}

uint64_t
UbTaskGraph::FirstUnfinishedTask() const
{
    uint64_t first = UB_NEVER;
    for (const auto& chunk : m_endpoints.Chunks())
    {
        for (uint32_t i = 0; chunk.isLive && i < chunk.nTasks; ++i)
        {
            if (chunk.tasks[i].state != FINISHED)
            {
                first = std::min(first, chunk.firstTask + i);
                break;
            }
        }
    }
    return first;
}

int64_t
UbTaskGraph::FinishPs(uint64_t number, int64_t nowPs) const
{
    auto found = m_finished.upper_bound(number);
    if (found == m_finished.begin())
    {
        return nowPs;
    }
    --found;
    const uint64_t index = number - found->first;
    return index < found->second.size() ? found->second[index] : nowPs;
}

void
UbTaskGraph::TryRetire(UbEndpointProcess::Chunk& chunk)
{
    if (chunk.isLive && chunk.flowsLeft == 0 && chunk.tasksLeft == 0 && chunk.held == 0)
    {
        std::vector<int64_t>& finished = m_finished[chunk.firstTask];
        finished.reserve(chunk.nTasks);
        for (uint32_t i = 0; i < chunk.nTasks; ++i)
        {
            finished.push_back(chunk.tasks[i].finishPs);
        }
        chunk.isLive = false;
        m_complete.push_back(chunk.id);
    }
}

void
UbTaskGraph::TryStart(Stream& stream, int64_t nowPs)
{
    const uint32_t reference = stream.head;
    if (reference == UB_NONE)
    {
        return;
    }
    UbTaskRecord& task = Task(reference);
    if (task.state != WAITING || task.depsLeft > 0)
    {
        return;
    }
    task.state = RUNNING;
    task.startPs = nowPs;
    // without a duration there is no time to read in
    if (task.memoryPs > 0 && task.durationPs > 0)
    {
        if (task.endpoint >= m_memories.size())
        {
            m_memories.resize(task.endpoint + 1);
        }
        Memory& memory = m_memories[task.endpoint];
        Settle(memory, nowPs);
        task.leftPs = static_cast<double>(task.durationPs);
        // sorted, so that sums do not depend on the order in which tasks of one instant start
        const auto place = std::find_if(
            memory.running.begin(),
            memory.running.end(),
            [this, &task](uint32_t other) { return Task(other).stream > task.stream; });
        memory.running.insert(place, reference);
        Share(task.endpoint, nowPs);
        return;
    }
    m_endpoints.Push(nowPs + task.durationPs,
                     UbEndpointProcess::TASK_TIMER,
                     task.endpoint,
                     reference);
}

void
UbTaskGraph::Settle(Memory& memory, int64_t nowPs)
{
    const double donePs = static_cast<double>(nowPs - memory.sincePs) / memory.slowdown;
    for (const uint32_t reference : memory.running)
    {
        Task(reference).leftPs -= donePs;
    }
    memory.sincePs = nowPs;
}

int64_t
UbTaskGraph::LeftPs(const Memory& memory, uint32_t reference)
{
    return std::max<int64_t>(std::llround(Task(reference).leftPs * memory.slowdown), 0);
}

void
UbTaskGraph::Share(uint32_t endpoint, int64_t nowPs)
{
    Memory& memory = m_memories[endpoint];
    double asked = 0;
    for (const uint32_t reference : memory.running)
    {
        const UbTaskRecord& task = Task(reference);
        asked += static_cast<double>(task.memoryPs) / static_cast<double>(task.durationPs);
    }
    memory.slowdown = std::max(asked, 1.0);
    int64_t duePs = UB_NEVER;
    for (const uint32_t reference : memory.running)
    {
        duePs = std::min(duePs, nowPs + LeftPs(memory, reference));
    }
    if (duePs == memory.duePs)
    {
        return;
    }
    if (memory.duePs != UB_NEVER)
    {
        m_endpoints.CancelTimer(memory.duePs, UbEndpointProcess::MEMORY_TIMER, endpoint);
    }
    if (duePs != UB_NEVER)
    {
        m_endpoints.SetTimer(duePs, UbEndpointProcess::MEMORY_TIMER, endpoint, 0);
    }
    memory.duePs = duePs;
}

void
UbTaskGraph::MemoryDue(uint32_t endpoint, int64_t nowPs)
{
    Memory& memory = m_memories[endpoint];
    memory.duePs = UB_NEVER;
    Settle(memory, nowPs);
    const auto over = std::stable_partition(
        memory.running.begin(),
        memory.running.end(),
        [this, &memory](uint32_t reference) { return LeftPs(memory, reference) > 0; });
    m_over.assign(over, memory.running.end());
    memory.running.erase(over, memory.running.end());
    Share(endpoint, nowPs);
    for (const uint32_t reference : m_over)
    {
        TimerOver(reference, nowPs);
    }
}

void
UbTaskGraph::TimerOver(uint32_t reference, int64_t nowPs)
{
    UbTaskRecord& task = Task(reference);
    if (task.sendCount > 0)
    {
        const auto& chunk = m_endpoints.ChunkOf(reference);
        const uint32_t slotBase = reference - UbEndpointProcess::IndexOf(reference);
        m_job.clear();
        for (uint32_t i = 0; i < task.sendCount; ++i)
        {
            m_job.push_back(slotBase | chunk.sendOrder[task.sendFirst + i]);
        }
        task.state = ISSUING;
        m_endpoints.StartJob(task.endpoint, reference, m_job, task.messagePs, nowPs);
        return;
    }
    task.state = RECEIVING;
    TryFinish(reference, nowPs);
}

void
UbTaskGraph::JobIssued(uint32_t reference, int64_t nowPs)
{
    UbTaskRecord& task = Task(reference);
    task.issuedPs = nowPs;
    task.state = RECEIVING;
    TryFinish(reference, nowPs);
}

void
UbTaskGraph::FlowSeen(uint32_t reference, int64_t nowPs)
{
    UbEndpointProcess::Chunk& chunk = m_endpoints.ChunkOf(reference);
    const UbFlowRecord& flow = m_endpoints.Flow(reference);
    if (m_flowHook)
    {
        m_flowHook(flow, nowPs);
    }
    --chunk.flowsLeft;
    if (flow.waitTask != UB_NONE)
    {
        const uint32_t waiter = (reference - UbEndpointProcess::IndexOf(reference)) | flow.waitTask;
        UbTaskRecord& task = Task(waiter);
        --task.flowsLeft;
        task.arrivedPs = nowPs;
        TryFinish(waiter, nowPs);
    }
    else
    {
        TryRetire(chunk);
    }
}

void
UbTaskGraph::OpenFlow(uint32_t slot, int64_t nowPs)
{
    UbEndpointProcess::Chunk& chunk = m_endpoints.Chunks()[slot];
    while (chunk.openNext < chunk.nOpen)
    {
        const uint32_t index = chunk.openOrder[chunk.openNext];
        const UbFlowRecord& flow = chunk.flows[index];
        if (flow.startPs > nowPs)
        {
            m_endpoints.Push(flow.startPs, UbEndpointProcess::OPEN_FLOW, 0, slot);
            return;
        }
        ++chunk.openNext;
        m_job.assign(1, UbEndpointProcess::Reference(slot, index));
        m_endpoints.StartJob(flow.src, UB_NONE, m_job, 0, nowPs);
    }
}

void
UbTaskGraph::TryFinish(uint32_t reference, int64_t nowPs)
{
    UbTaskRecord& task = Task(reference);
    if (task.state != RECEIVING || task.flowsLeft > 0)
    {
        return;
    }
    task.state = FINISHED;
    task.finishPs = nowPs;
    UbEndpointProcess::Chunk& chunk = m_endpoints.ChunkOf(reference);
    --chunk.tasksLeft;
    for (uint32_t edge = task.successor; edge != UB_NONE;)
    {
        UbTaskRecord& successor = Task(m_edges[edge].task);
        if (--successor.depsLeft == 0)
        {
            successor.readyPs = nowPs;
            TryStart(m_streams[successor.stream], nowPs);
        }
        const uint32_t next = m_edges[edge].next;
        m_freeEdges.push_back(edge);
        edge = next;
    }
    task.successor = UB_NONE;
    Stream& stream = m_streams[task.stream];
    stream.head = task.next;
    if (stream.head == UB_NONE)
    {
        stream.tail = UB_NONE;
        ++m_nDry;
    }
    TryStart(stream, nowPs);
    TryRetire(chunk);
}

} // namespace ns3
