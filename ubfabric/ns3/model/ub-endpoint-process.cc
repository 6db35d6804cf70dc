// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-endpoint-process.h"

#include "ub-task-graph.h"

#include "ns3/fatal-error.h"

#include <algorithm>

namespace ns3
{

UbEndpointProcess::UbEndpointProcess(const UbFabricArrays& arrays,
                                     const UbEndpointSettings& settings,
                                     std::vector<std::unique_ptr<UbPlane>>& planes,
                                     Ptr<UbPlanePolicy> policy)
    : m_settings(settings),
      m_planes(planes),
      m_policy(policy),
      m_endpoints(arrays.nNodes)
{
    for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
    {
        const uint32_t network = arrays.planeNetwork[plane];
        m_planeNetwork.push_back(network);
        m_networkPlanes.resize(std::max<size_t>(m_networkPlanes.size(), network + 1), 0);
        m_networkPlanes[network] |= uint64_t{1} << plane;
    }
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        m_directStart.push_back(static_cast<uint32_t>(m_direct.size()));
        if (arrays.nodeIsEndpoint[node] == 0)
        {
            continue;
        }
        Endpoint& endpoint = m_endpoints[node];
        endpoint.issueCostPs = arrays.nodeIssueCostPs[node];
        endpoint.receiveLatencyPs = arrays.nodeReceiveLatencyPs[node];
        endpoint.engineBytesPerS = arrays.nodeEngineBytesPerS[node];
        endpoint.egressBytesPerS = arrays.nodeEgressBytesPerS[node];
        endpoint.copyBytesPerS = arrays.nodeCopyBytesPerS[node];
        endpoint.firstEngine = node * MAX_ENGINES;
        const uint32_t nEngines = arrays.nodeIssueEngines[node];
        endpoint.idle = nEngines == MAX_ENGINES ? ~uint64_t{0} : (uint64_t{1} << nEngines) - 1;
        m_lookaheadPs = std::min(m_lookaheadPs, endpoint.receiveLatencyPs);
        for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
        {
            if (m_planes[plane]->Reaches(node))
            {
                endpoint.planes |= uint64_t{1} << plane;
            }
        }
        for (uint32_t at = arrays.directStart[node]; at < arrays.directStart[node + 1]; ++at)
        {
            const uint32_t link = arrays.directLink[at];
            m_direct.push_back({arrays.directDst[at], link, arrays.linkPlane[link]});
        }
    }
    m_directStart.push_back(static_cast<uint32_t>(m_direct.size()));
    m_engines.resize(uint64_t{arrays.nNodes} * MAX_ENGINES);
    // endpoints emit a packet every few tens of nanoseconds each
    uint32_t shift = 6;
    while (shift < 20 && (uint64_t{arrays.nNodes} << shift) < 200'000)
    {
        ++shift;
    }
    m_queue.SetWidth(shift);
    m_policy->Reset(arrays.nNodes, settings.seed);
}

const UbEndpointProcess::Direct*
UbEndpointProcess::FindDirect(uint32_t src, uint32_t dst, uint32_t network) const
{
    for (uint32_t at = m_directStart[src]; at < m_directStart[src + 1]; ++at)
    {
        if (m_direct[at].dst == dst && m_planeNetwork[m_direct[at].plane] == network)
        {
            return &m_direct[at];
        }
    }
    return nullptr;
}

bool
UbEndpointProcess::Reaches(uint32_t src, uint32_t dst, uint32_t network) const
{
    return src == dst || FindDirect(src, dst, network) != nullptr ||
           (network < m_networkPlanes.size() &&
            (m_networkPlanes[network] & m_endpoints[src].planes & m_endpoints[dst].planes) != 0);
}

int64_t
UbEndpointProcess::RunBefore(int64_t limitPs)
{
    UbEventQueue::Event event;
    while (m_queue.PopBefore(limitPs, event))
    {
        ++m_eventCount;
        m_lastPs = event.timePs;
        const uint32_t place = event.key & ((1U << KIND_SHIFT) - 1);
        switch (static_cast<EventKind>(event.key >> KIND_SHIFT))
        {
        case TASK_TIMER:
            m_tasks->TimerOver(event.payload, event.timePs);
            break;
        case OPEN_FLOW:
            m_tasks->OpenFlow(event.payload, event.timePs);
            break;
        case FLOW_SEEN:
            m_tasks->FlowSeen(event.payload, event.timePs);
            break;
        case JOB_ISSUED:
            m_tasks->JobIssued(event.payload, event.timePs);
            break;
        case EMIT:
            Emit(place / MAX_ENGINES, place % MAX_ENGINES, event.timePs);
            break;
        }
        if (m_tasks->NeedsChunk())
        {
            return event.timePs;
        }
    }
    return limitPs;
}

void
UbEndpointProcess::StartJob(uint32_t endpoint,
                            uint32_t task,
                            const std::vector<uint32_t>& flows,
                            int64_t nowPs)
{
    uint32_t index;
    if (m_freeJobs.empty())
    {
        index = static_cast<uint32_t>(m_jobs.size());
        m_jobs.emplace_back();
    }
    else
    {
        index = m_freeJobs.back();
        m_freeJobs.pop_back();
    }
    Job& job = m_jobs[index];
    job.task = task;
    job.read = 0;
    job.write = 0;
    job.unissued = 0;
    job.issuedPs = nowPs;
    job.items.clear();
    for (const uint32_t reference : flows)
    {
        UbFlowRecord& flow = Flow(reference);
        flow.startPs = nowPs;
        flow.firstBytePs = UB_NEVER;
        flow.finishPs = 0;
        flow.queueingPs = 0;
        flow.hops = 0;
        flow.packetsLeft = flow.messages * ((flow.messageBytes + m_settings.payloadBytes - 1) /
                                            m_settings.payloadBytes);
        job.items.push_back({reference, flow.messages});
        job.unissued += flow.messages;
    }
    job.unfinished = job.unissued;
    m_endpoints[endpoint].jobs.push_back(index);
    Feed(endpoint, nowPs);
}

void
UbEndpointProcess::Feed(uint32_t endpoint, int64_t nowPs)
{
    uint64_t& idle = m_endpoints[endpoint].idle;
    while (idle != 0)
    {
        const auto engine = static_cast<uint32_t>(__builtin_ctzll(idle));
        if (!TakeMessage(endpoint, engine, nowPs))
        {
            return;
        }
        idle &= idle - 1;
    }
}

bool
UbEndpointProcess::TakeMessage(uint32_t endpointIndex, uint32_t engineIndex, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    if (endpoint.jobs.empty())
    {
        return false;
    }
    if (endpoint.nextJob >= endpoint.jobs.size())
    {
        endpoint.nextJob = 0;
    }
    const uint32_t jobIndex = endpoint.jobs[endpoint.nextJob];
    Job& job = m_jobs[jobIndex];
    if (job.read == job.items.size())
    {
        job.items.resize(job.write);
        job.read = 0;
        job.write = 0;
    }
    Item& item = job.items[job.read++];
    const uint32_t reference = item.flow;
    if (--item.left > 0)
    {
        job.items[job.write++] = item;
    }
    if (--job.unissued == 0)
    {
        endpoint.jobs.erase(endpoint.jobs.begin() + endpoint.nextJob);
    }
    else
    {
        ++endpoint.nextJob;
    }
    Engine& engine = m_engines[endpoint.firstEngine + engineIndex];
    engine.flow = reference;
    engine.job = jobIndex;
    engine.leftBytes = Flow(reference).messageBytes;
    const uint32_t payload = std::min(engine.leftBytes, m_settings.payloadBytes);
    Push(nowPs + endpoint.issueCostPs + UbSerialisePs(payload, endpoint.engineBytesPerS),
         EMIT,
         endpointIndex * MAX_ENGINES + engineIndex,
         0);
    return true;
}

void
UbEndpointProcess::SendPacket(UbInjection& injection, uint32_t network, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[injection.srcEndpoint];
    injection.readyPs = std::max(nowPs, endpoint.egressFreePs);
    endpoint.egressFreePs =
        injection.readyPs + UbSerialisePs(injection.wireBytes, endpoint.egressBytesPerS);
    const uint64_t pair = (uint64_t{injection.srcEndpoint} << 32) | injection.dstEndpoint;
    injection.flowHash = UbMix(m_settings.seed ^ UbMix(pair));
    injection.loadBalance = static_cast<uint8_t>(endpoint.packets);
    injection.packetHash = UbMix(injection.flowHash ^ UbMix(endpoint.packets++));
    if (const Direct* direct = FindDirect(injection.srcEndpoint, injection.dstEndpoint, network))
    {
        injection.directLink = direct->link;
        m_planes[direct->plane]->Inject(injection);
        return;
    }
    injection.directLink = UB_NONE;
    uint64_t planes =
        network < m_networkPlanes.size()
            ? m_networkPlanes[network] & endpoint.planes & m_endpoints[injection.dstEndpoint].planes
            : 0;
    if (m_checksRoutes)
    {
        for (uint64_t left = planes; left != 0; left &= left - 1)
        {
            const auto plane = static_cast<uint32_t>(__builtin_ctzll(left));
            if (!m_planes[plane]->HasRoute(injection.srcEndpoint, injection.dstEndpoint))
            {
                planes &= ~(uint64_t{1} << plane);
            }
        }
    }
    if (planes == 0)
    {
        NS_FATAL_ERROR("no plane of network " << network << " leads from node "
                                              << injection.srcEndpoint << " to node "
                                              << injection.dstEndpoint);
    }
    const auto nPlanes = static_cast<uint32_t>(__builtin_popcountll(planes));
    if (nPlanes > 1)
    {
        const bool looksAtPorts = m_policy->LooksAtPorts() && !injection.ordered;
        std::array<int64_t, MAX_PLANES> backlogPs;
        uint32_t at = 0;
        for (uint64_t left = looksAtPorts ? planes : 0; left != 0; left &= left - 1)
        {
            const auto plane = static_cast<uint32_t>(__builtin_ctzll(left));
            backlogPs[at++] = m_planes[plane]->BacklogPs(injection.srcEndpoint, nowPs);
        }
        const uint32_t choice = injection.ordered
                                    ? UbReduce(UbMix(~injection.flowHash), nPlanes)
                                    : m_policy->Choose(injection.srcEndpoint,
                                                       nPlanes,
                                                       injection.flowHash,
                                                       injection.packetHash,
                                                       looksAtPorts ? backlogPs.data() : nullptr);
        for (uint32_t i = 0; i < choice; ++i)
        {
            planes &= planes - 1;
        }
    }
    m_planes[__builtin_ctzll(planes)]->Inject(injection);
}

void
UbEndpointProcess::Emit(uint32_t endpointIndex, uint32_t engineIndex, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Engine& engine = m_engines[endpoint.firstEngine + engineIndex];
    const UbFlowRecord& flow = Flow(engine.flow);
    const uint32_t payload = std::min(engine.leftBytes, m_settings.payloadBytes);
    int64_t donePs = nowPs;
    ++m_packetsSent;
    m_bytesSent += payload;
    if (flow.src == flow.dst)
    {
        Account({nowPs + UbSerialisePs(payload, endpoint.copyBytesPerS),
                 nowPs,
                 0,
                 engine.flow,
                 0,
                 static_cast<uint16_t>(payload),
                 0,
                 0,
                 0,
                 false});
    }
    else
    {
        UbInjection injection{};
        injection.flow = engine.flow;
        injection.srcEndpoint = flow.src;
        injection.dstEndpoint = flow.dst;
        injection.payloadBytes = payload;
        injection.wireBytes = payload + m_settings.headerBytes;
        injection.lane = flow.lane;
        SendPacket(injection, flow.network, nowPs);
        donePs = injection.readyPs; // the engine waits while the egress is behind
    }
    engine.leftBytes -= payload;
    if (engine.leftBytes > 0)
    {
        const uint32_t next = std::min(engine.leftBytes, m_settings.payloadBytes);
        Push(donePs + UbSerialisePs(next, endpoint.engineBytesPerS),
             EMIT,
             endpointIndex * MAX_ENGINES + engineIndex,
             0);
        return;
    }
    Job& job = m_jobs[engine.job];
    job.issuedPs = std::max(job.issuedPs, donePs);
    if (--job.unfinished == 0)
    {
        if (job.task != UB_NONE)
        {
            Push(job.issuedPs, JOB_ISSUED, endpointIndex, job.task);
        }
        m_freeJobs.push_back(engine.job);
    }
    if (!TakeMessage(endpointIndex, engineIndex, donePs))
    {
        endpoint.idle |= uint64_t{1} << engineIndex;
    }
}

void
UbEndpointProcess::Account(const UbDelivery& delivery)
{
    UbFlowRecord& flow = Flow(delivery.flow);
    m_bytesDelivered += delivery.payloadBytes;
    flow.firstBytePs = std::min(flow.firstBytePs, delivery.headPs);
    flow.finishPs = std::max(flow.finishPs, delivery.tailPs);
    flow.queueingPs += delivery.waitedPs;
    flow.hops = std::max(flow.hops, delivery.hops);
    if (--flow.packetsLeft == 0)
    {
        flow.finishPs += m_endpoints[flow.dst].receiveLatencyPs;
        Push(flow.finishPs, FLOW_SEEN, flow.dst, delivery.flow);
    }
}

void
UbEndpointProcess::SendDevicePacket(uint32_t src,
                                    uint32_t dst,
                                    uint32_t handle,
                                    uint32_t bytes,
                                    uint32_t network,
                                    uint8_t lane,
                                    int64_t nowPs)
{
    UbInjection injection{};
    injection.flow = UB_DEVICE_FLOW | handle;
    injection.srcEndpoint = src;
    injection.dstEndpoint = dst;
    injection.payloadBytes = bytes;
    injection.wireBytes = bytes + m_settings.headerBytes;
    injection.lane = lane;
    injection.ordered = true;
    SendPacket(injection, network, nowPs);
}

} // namespace ns3
