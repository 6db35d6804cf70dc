// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-endpoint-process.h"

#include "ub-task-graph.h"

#include "ns3/abort.h"

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
      m_outgoing(arrays.nPlanes),
      m_endpoints(arrays.nNodes),
      m_planesOf(arrays.nNodes, 0),
      m_transports(settings.transports)
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
        endpoint.receiveLatencyPs = arrays.nodeReceiveLatencyPs[node];
        endpoint.memoryReadLatencyPs = arrays.nodeMemoryReadLatencyPs != nullptr
                                           ? arrays.nodeMemoryReadLatencyPs[node]
                                           : endpoint.receiveLatencyPs;
        endpoint.acknowledgeLatencyPs = arrays.nodeAcknowledgeLatencyPs != nullptr
                                            ? arrays.nodeAcknowledgeLatencyPs[node]
                                            : endpoint.receiveLatencyPs;
        endpoint.egressBytesPerS = arrays.nodeEgressBytesPerS[node];
        endpoint.copyBytesPerS = arrays.nodeCopyBytesPerS[node];
        endpoint.firstEngine = static_cast<uint32_t>(m_engines.size());
        endpoint.nCores = arrays.nodeIssueEngines[node];
        Group& cores = endpoint.groups[0];
        cores.issueCostPs = arrays.nodeIssueCostPs[node];
        cores.engineBytesPerS = arrays.nodeEngineBytesPerS[node];
        cores.idle = Bits(endpoint.nCores);
        cores.overlapsIssue =
            arrays.nodeOverlapsIssue != nullptr && arrays.nodeOverlapsIssue[node] != 0;
        Group& sdma = endpoint.groups[1];
        endpoint.nSdma = arrays.nodeSdmaEngines != nullptr ? arrays.nodeSdmaEngines[node] : 0;
        if (endpoint.nSdma > 0)
        {
            NS_ABORT_MSG_IF(endpoint.nCores + endpoint.nSdma > MAX_ENGINES,
                            "endpoint " << node << " has more than " << MAX_ENGINES << " engines");
            sdma.issueCostPs = arrays.nodeSdmaStartPs[node];
            sdma.engineBytesPerS = arrays.nodeSdmaBytesPerS[node];
            sdma.heedsMemory = true;
            sdma.idle = Bits(endpoint.nSdma) << endpoint.nCores;
        }
        if (arrays.nodeSdmaReadBytesPerS != nullptr)
        {
            endpoint.sdmaReadBytesPerS = arrays.nodeSdmaReadBytesPerS[node];
        }
        if (arrays.nodeSdmaWriteBytesPerS != nullptr)
        {
            endpoint.sdmaWriteBytesPerS = arrays.nodeSdmaWriteBytesPerS[node];
        }
        for (Group& group : endpoint.groups)
        {
            group.fullBytes = settings.payloadBytes;
            group.fullPs = UbSerialisePs(group.fullBytes, group.engineBytesPerS);
        }
        m_engines.resize(m_engines.size() + endpoint.nCores + endpoint.nSdma);
        endpoint.lookaheadPs = endpoint.receiveLatencyPs;
        for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
        {
            if (m_planes[plane]->Reaches(node))
            {
                m_planesOf[node] |= uint64_t{1} << plane;
            }
        }
        for (uint32_t at = arrays.directStart[node]; at < arrays.directStart[node + 1]; ++at)
        {
            const uint32_t link = arrays.directLink[at];
            m_direct.push_back({arrays.directDst[at], link, arrays.linkPlane[link]});
        }
    }
    m_directStart.push_back(static_cast<uint32_t>(m_direct.size()));
    for (uint32_t link = 0; link < arrays.nLinks; ++link)
    {
        Endpoint& endpoint = m_endpoints[arrays.linkSrc[link]];
        endpoint.portBytesPerS[arrays.planeNetwork[arrays.linkPlane[link]]] +=
            arrays.linkBytesPerS[link];
    }
    for (uint32_t network = 0; network < UB_NETWORKS; ++network)
    {
        UbTransport& transport = *m_transports[network];
        transport.Attach(*this, network, settings.payloadBytes, settings.congestion[network]);
        m_packetBytes[network] = transport.PacketBytes();
        m_pieceBytes[network] = transport.PieceBytes();
        m_readBytes[network] = transport.ReadBytes();
        m_headerBytes[network] = transport.GetHeaderBytes();
        m_fullWireBytes[network] = Framed(network, m_headerBytes[network] + m_packetBytes[network]);
        m_posted |= transport.IsPosted() ? 1U << network : 0;
        m_described |= transport.GetStyle() == UbTransport::DESCRIBE ? 1U << network : 0;
        for (uint32_t node = 0; node < arrays.nNodes; ++node)
        {
            Endpoint& endpoint = m_endpoints[node];
            if (arrays.nodeIsEndpoint[node] == 0)
            {
                continue;
            }
            if (transport.Answers())
            {
                NS_ABORT_MSG_IF(endpoint.acknowledgeLatencyPs < 1 ||
                                    endpoint.acknowledgeLatencyPs > endpoint.receiveLatencyPs,
                                "endpoint " << node << " has an acknowledge latency of "
                                            << endpoint.acknowledgeLatencyPs
                                            << " ps; it must be above 0 and at most the receive "
                                               "latency of "
                                            << endpoint.receiveLatencyPs << " ps");
                endpoint.lookaheadPs =
                    std::min(endpoint.lookaheadPs, endpoint.acknowledgeLatencyPs);
            }
            if (transport.CanRead())
            {
                NS_ABORT_MSG_IF(endpoint.memoryReadLatencyPs < 1,
                                "endpoint " << node << " has a memory read latency of "
                                            << endpoint.memoryReadLatencyPs
                                            << " ps; it must be above 0");
                endpoint.lookaheadPs = std::min(endpoint.lookaheadPs, endpoint.memoryReadLatencyPs);
            }
        }
    }
    int64_t leastPs = UB_NEVER;
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        leastPs = arrays.nodeIsEndpoint[node] != 0
                      ? std::min(leastPs, m_endpoints[node].lookaheadPs)
                      : leastPs;
    }
    for (const auto& transport : m_transports)
    {
        NS_ABORT_MSG_IF(transport->GetTimeoutPs() < leastPs,
                        "a timeout of " << transport->GetTimeoutPs()
                                        << " ps is shorter than an endpoint needs to react");
    }
    // endpoints emit a packet every few tens of nanoseconds each
    uint32_t shift = 6;
    while (shift < 20 && (uint64_t{arrays.nNodes} << shift) < 200'000)
    {
        ++shift;
    }
    m_queue.SetWidth(shift);
    m_policy->Reset(arrays.nNodes, settings.seed);
}

uint64_t
UbEndpointProcess::Bits(uint32_t n)
{
    return n == MAX_ENGINES ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}

uint32_t
UbEndpointProcess::Framed(uint32_t network, uint32_t bytes) const
{
    return network == 0 ? m_settings.format.WireBytes(bytes, 0) : bytes;
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
           PlanesTo(src, dst, network) != 0;
}

int64_t
UbEndpointProcess::RunBefore(int64_t limitPs)
{
    UbEventQueue::Event event;
    const bool isBusy = m_queue.KeepReadyIfMany(MANY_EVENTS, (N_STEPS + 1) * EVENTS_APART);
    while (true)
    {
        const int64_t timerPs = m_timers.empty() ? UB_NEVER : std::get<0>(*m_timers.begin());
        // at one instant timers come last
        if (!m_queue.PopBefore(timerPs < limitPs ? timerPs + 1 : limitPs, event))
        {
            if (timerPs >= limitPs)
            {
                return limitPs;
            }
            const auto [timePs, network, name, index] = *m_timers.begin();
            m_timers.erase(m_timers.begin());
            ++m_eventCount;
            m_lastPs = timePs;
            if (network == MEMORY_TIMER)
            {
                m_tasks->MemoryDue(static_cast<uint32_t>(name), timePs);
            }
            else
            {
                m_transports[network]->Expire(name, index, timePs);
            }
            if (m_tasks->NeedsChunk())
            {
                return timePs;
            }
            continue;
        }
        ++m_eventCount;
        m_lastPs = event.timePs;
        if (isBusy)
        {
            LookAhead();
        }
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
        case REACT:
            RunReactions(event);
            break;
        case PUMP:
            m_transports[event.payload]->Pump(place, event.timePs);
            break;
        case RETRY:
            RunRetries(event);
            break;
        }
        if (m_tasks->NeedsChunk())
        {
            return event.timePs;
        }
    }
}

void
UbEndpointProcess::LookAhead()
{
    const auto each = [&](uint32_t step, const auto& visit) {
        m_queue.LookAhead(m_seen[step],
                          (N_STEPS - step) * EVENTS_APART,
                          [&](const UbEventQueue::Event& event, uint64_t /* number */) {
                              if (event.key >> KIND_SHIFT == EMIT)
                              {
                                  visit(event.key & ((1U << KIND_SHIFT) - 1));
                              }
                              else if (step == 0 && event.key >> KIND_SHIFT == FLOW_SEEN)
                              {
                                  PrefetchFlow(event.payload);
                              }
                          });
    };
    const auto engineAt = [&](uint32_t place) -> const Engine& {
        return m_engines[m_endpoints[place / MAX_ENGINES].firstEngine + place % MAX_ENGINES];
    };
    each(0, [&](uint32_t place) { UbPrefetch(&m_endpoints[place / MAX_ENGINES].firstEngine); });
    each(1, [&](uint32_t place) {
        UbPrefetch(&engineAt(place));
        UbPrefetch(&m_endpoints[place / MAX_ENGINES].groups);
    });
    each(2, [&](uint32_t place) { PrefetchFlow(engineAt(place).flow); });
}

bool
UbEndpointProcess::Parked::operator<(const Parked& other) const
{
    const auto contents = [](const Parked& parked) {
        const UbInjection& i = parked.injection;
        return std::tie(i.flow,
                        i.tag,
                        i.srcEndpoint,
                        i.dstEndpoint,
                        i.wireBytes,
                        i.lane,
                        parked.attempts,
                        parked.sincePs);
    };
    return contents(*this) < contents(other);
}

bool
UbEndpointProcess::PopSame(const UbEventQueue::Event& first, uint32_t& payload)
{
    const bool isSame = m_queue.PopSame(first, payload);
    m_eventCount += isSame ? 1 : 0;
    return isSame;
}

void
UbEndpointProcess::RunReactions(const UbEventQueue::Event& first)
{
    const uint32_t endpoint = first.key & ((1U << KIND_SHIFT) - 1);
    m_reacting.clear();
    uint32_t index = first.payload;
    do
    {
        m_reacting.push_back(m_reactions[index]);
        m_freeReactions.push_back(index);
    } while (PopSame(first, index));
    // which place in the pool a reaction has depends on the order of the planes
    std::sort(m_reacting.begin(), m_reacting.end());
    for (const UbReaction& reaction : m_reacting)
    {
        m_transports[Flow(reaction.delivery.flow).network]->React(endpoint, reaction, first.timePs);
    }
}

void
UbEndpointProcess::RunRetries(const UbEventQueue::Event& first)
{
    std::vector<Parked> retrying;
    uint32_t index = first.payload;
    do
    {
        retrying.push_back(m_parked[index]);
        m_freeParked.push_back(index);
    } while (PopSame(first, index));
    std::sort(retrying.begin(), retrying.end());
    for (Parked& parked : retrying)
    {
        if (SendPacket(parked.injection, parked.network, first.timePs))
        {
            continue;
        }
        if (++parked.attempts > m_transports[parked.network]->GetRetryLimit())
        {
            m_hasFailed = true;
            continue;
        }
        Park(parked, first.timePs);
    }
}

void
UbEndpointProcess::Park(const Parked& parked, int64_t nowPs)
{
    if (m_error.src == UB_NONE)
    {
        m_error = {parked.injection.srcEndpoint,
                   parked.injection.dstEndpoint,
                   parked.network,
                   nowPs,
                   false};
    }
    uint32_t index;
    if (m_freeParked.empty())
    {
        index = static_cast<uint32_t>(m_parked.size());
        m_parked.emplace_back();
    }
    else
    {
        index = m_freeParked.back();
        m_freeParked.pop_back();
    }
    m_parked[index] = parked;
    Push(nowPs + m_transports[parked.network]->GetTimeoutPs(),
         RETRY,
         parked.injection.srcEndpoint,
         index);
}

void
UbEndpointProcess::StartJob(uint32_t endpointIndex,
                            uint32_t task,
                            const std::vector<uint32_t>& flows,
                            int64_t messagePs,
                            int64_t nowPs)
{
    std::array<uint32_t, N_GROUPS> jobs{UB_NONE, UB_NONE};
    Endpoint& endpoint = m_endpoints[endpointIndex];
    for (const uint32_t reference : flows)
    {
        UbFlowRecord& flow = Flow(reference);
        const uint32_t kind = (flow.operation & UB_BY_SDMA) != 0 ? 1 : 0;
        NS_ABORT_MSG_IF(flow.network >= UB_NETWORKS || ((flow.operation & UB_READ) != 0 &&
                                                        !m_transports[flow.network]->CanRead()),
                        "a flow of node " << endpointIndex << " asks for what its network "
                                          << uint32_t{flow.network} << " cannot do");
        NS_ABORT_MSG_IF(kind == 1 && endpoint.nSdma == 0,
                        "a flow of node " << endpointIndex << " wants SDMA; the node has none");
        flow.startPs = nowPs;
        flow.firstBytePs = UB_NEVER;
        flow.finishPs = 0;
        flow.queueingPs = 0;
        flow.hops = 0;
        flow.packetsLeft = flow.messages * PacketsOf(flow);
        uint32_t& index = jobs[kind];
        if (index == UB_NONE)
        {
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
            job.partner = UB_NONE;
            job.read = 0;
            job.write = 0;
            job.unfinished = 0;
            job.messagePs = messagePs;
            job.issuedPs = nowPs;
            job.items.clear();
        }
        Job& job = m_jobs[index];
        job.items.push_back({reference, flow.messages});
        job.unfinished += flow.messages;
        if (!IsPosted(flow.network))
        {
            Chunk& chunk = ChunkOf(reference);
            chunk.jobOf.resize(chunk.nFlows, UB_NONE);
            chunk.jobOf[IndexOf(reference)] = index;
        }
    }
    if (jobs[0] != UB_NONE && jobs[1] != UB_NONE)
    {
        m_jobs[jobs[0]].partner = jobs[1];
        m_jobs[jobs[1]].partner = jobs[0];
    }
    for (uint32_t kind = 0; kind < N_GROUPS; ++kind)
    {
        if (jobs[kind] != UB_NONE)
        {
            endpoint.groups[kind].jobs.push_back(jobs[kind]);
            Feed(endpointIndex, kind, nowPs);
        }
    }
}

uint32_t
UbEndpointProcess::PacketsOf(const UbFlowRecord& flow) const
{
    const uint32_t packet = m_packetBytes[flow.network];
    const auto count = [packet](uint32_t bytes) { return (bytes + packet - 1) / packet; };
    if (flow.src == flow.dst)
    {
        return count(flow.messageBytes);
    }
    const uint32_t piece = PieceBytes(flow);
    return flow.messageBytes / piece * count(piece) + count(flow.messageBytes % piece);
}

void
UbEndpointProcess::Feed(uint32_t endpointIndex, uint32_t groupIndex, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Group& group = endpoint.groups[groupIndex];
    while (group.idle != 0)
    {
        // the first engine that is free; if none is, the one that is free first
        uint32_t chosen = UB_NONE;
        for (uint64_t left = group.idle; left != 0; left &= left - 1)
        {
            const auto engine = static_cast<uint32_t>(__builtin_ctzll(left));
            const int64_t freePs = m_engines[endpoint.firstEngine + engine].freePs;
            if (freePs <= nowPs)
            {
                chosen = engine;
                break;
            }
            if (chosen == UB_NONE || freePs < m_engines[endpoint.firstEngine + chosen].freePs)
            {
                chosen = engine;
            }
        }
        if (!TakeMessage(endpointIndex, chosen, nowPs))
        {
            return;
        }
        group.idle &= ~(uint64_t{1} << chosen);
    }
    while (group.hungry != 0)
    {
        const auto chosen = static_cast<uint32_t>(__builtin_ctzll(group.hungry));
        Engine& engine = m_engines[endpoint.firstEngine + chosen];
        if (!NextMessage(group, engine.nextFlow, engine.nextJob))
        {
            return;
        }
        engine.nextReadyPs =
            std::max(nowPs, engine.streamPs) + CostPs(group, engine.nextJob, engine.nextFlow);
        group.hungry &= group.hungry - 1;
    }
}

bool
UbEndpointProcess::NextMessage(Group& group, uint32_t& flow, uint32_t& jobIndex)
{
    if (group.jobs.empty())
    {
        return false;
    }
    if (group.nextJob >= group.jobs.size())
    {
        group.nextJob = 0;
    }
    jobIndex = group.jobs[group.nextJob];
    Job& job = m_jobs[jobIndex];
    if (job.read == job.items.size())
    {
        job.items.resize(job.write);
        job.read = 0;
        job.write = 0;
    }
    Item& item = job.items[job.read++];
    flow = item.flow;
    if (--item.left > 0)
    {
        job.items[job.write++] = item;
    }
    if (job.read < job.items.size())
    {
        PrefetchFlow(job.items[job.read].flow); // most likely the next one that is asked for
    }
    if (job.read == job.items.size() && job.write == 0)
    {
        group.jobs.erase(group.jobs.begin() + group.nextJob);
    }
    else
    {
        ++group.nextJob;
    }
    return true;
}

int64_t
UbEndpointProcess::CostPs(const Group& group, uint32_t job, uint32_t reference) const
{
    const int64_t messagePs = m_jobs[job].messagePs;
    if (messagePs == 0)
    {
        return group.issueCostPs;
    }
    const UbFlowRecord& flow = Flow(reference);
    const bool isNear =
        flow.src == flow.dst || FindDirect(flow.src, flow.dst, flow.network) != nullptr;
    return group.issueCostPs + (isNear ? 0 : messagePs);
}

bool
UbEndpointProcess::TakeMessage(uint32_t endpointIndex, uint32_t engineIndex, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Group& group = endpoint.groups[engineIndex < endpoint.nCores ? 0 : 1];
    uint32_t flow;
    uint32_t job;
    if (!NextMessage(group, flow, job))
    {
        return false;
    }
    const int64_t freePs = m_engines[endpoint.firstEngine + engineIndex].freePs;
    const int64_t costPs = CostPs(group, job, flow);
    Start(endpointIndex,
          engineIndex,
          flow,
          job,
          group.overlapsIssue ? std::max(nowPs + costPs, freePs)
                              : std::max(nowPs, freePs) + costPs);
    return true;
}

void
UbEndpointProcess::Start(uint32_t endpointIndex,
                         uint32_t engineIndex,
                         uint32_t reference,
                         uint32_t job,
                         int64_t streamPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Engine& engine = m_engines[endpoint.firstEngine + engineIndex];
    const Group& group = endpoint.groups[engineIndex < endpoint.nCores ? 0 : 1];
    const UbFlowRecord& flow = Flow(reference);
    engine.flow = reference;
    engine.job = job;
    engine.leftBytes = flow.messageBytes;
    engine.isFirst = true;
    engine.streamPs = streamPs;
    const uint32_t piece = std::min(engine.leftBytes, PieceBytes(flow));
    // a description or a request for data leaves at once; data must be streamed first
    const bool isStreamed = !IsDescribed(flow) && (flow.operation & UB_READ) == 0;
    Push(streamPs + (isStreamed ? StreamPs(group, flow, piece) : 0),
         EMIT,
         endpointIndex * MAX_ENGINES + engineIndex,
         0);
}

void
UbEndpointProcess::Prepare(uint32_t endpointIndex, uint32_t engineIndex)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Engine& engine = m_engines[endpoint.firstEngine + engineIndex];
    Group& group = endpoint.groups[engineIndex < endpoint.nCores ? 0 : 1];
    if (NextMessage(group, engine.nextFlow, engine.nextJob))
    {
        engine.nextReadyPs = std::max(engine.streamPs, Flow(engine.nextFlow).startPs) +
                             CostPs(group, engine.nextJob, engine.nextFlow);
    }
    else
    {
        group.hungry |= uint64_t{1} << engineIndex;
    }
}

void
UbEndpointProcess::Split(const std::vector<UbPlanePart>& processes)
{
    m_outgoing.resize(processes.size());
    m_processes.clear();
    for (uint32_t process = 0; process < processes.size(); ++process)
    {
        if (processes[process].number == 0)
        {
            m_processes.emplace_back(process, processes[process].ofNode);
        }
    }
}

bool
UbEndpointProcess::SendPacket(UbInjection& injection, uint32_t network, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[injection.srcEndpoint];
    const Direct* direct = FindDirect(injection.srcEndpoint, injection.dstEndpoint, network);
    uint64_t planes = 0;
    if (direct == nullptr)
    {
        planes = PlanesTo(injection.srcEndpoint, injection.dstEndpoint, network);
        if (planes == 0)
        {
            injection.readyPs = nowPs;
            return false;
        }
    }
    if (direct != nullptr)
    {
        injection.readyPs = nowPs; // the limit is that of the ports into the planes
    }
    else
    {
        injection.readyPs = std::max(nowPs, endpoint.egressFreePs);
        endpoint.egressFreePs =
            injection.readyPs + UbSerialisePs(injection.wireBytes, endpoint.egressBytesPerS);
    }
    const uint64_t pair = (uint64_t{injection.srcEndpoint} << 32) | injection.dstEndpoint;
    injection.flowHash = UbMix(m_settings.seed ^ UbMix(pair));
    injection.loadBalance = static_cast<uint8_t>(endpoint.packets);
    injection.packetHash = UbMix(injection.flowHash ^ UbMix(endpoint.packets++));
    if (direct != nullptr)
    {
        injection.directLink = direct->link;
        m_outgoing[ProcessOf(direct->plane, injection.srcEndpoint)].push_back(injection);
        return true;
    }
    injection.directLink = UB_NONE;
    const auto nPlanes = static_cast<uint32_t>(__builtin_popcountll(planes));
    if (nPlanes > 1)
    {
        const bool looksAtPorts = m_policy->LooksAtPorts() && !injection.ordered;
        std::array<int64_t, MAX_PLANES> backlogPs;
        uint32_t at = 0;
        for (uint64_t left = looksAtPorts ? planes : 0; left != 0; left &= left - 1)
        {
            const auto plane = static_cast<uint32_t>(__builtin_ctzll(left));
            m_planes[plane]->Accept(m_outgoing[plane]); // they wait there too
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
    const auto plane = static_cast<uint32_t>(__builtin_ctzll(planes));
    m_outgoing[ProcessOf(plane, injection.srcEndpoint)].push_back(injection);
    return true;
}

void
UbEndpointProcess::Emit(uint32_t endpointIndex, uint32_t engineIndex, int64_t nowPs)
{
    Endpoint& endpoint = m_endpoints[endpointIndex];
    Engine& engine = m_engines[endpoint.firstEngine + engineIndex];
    Group& group = endpoint.groups[engineIndex < endpoint.nCores ? 0 : 1];
    const UbFlowRecord& flow = Flow(engine.flow);
    if (engine.isFirst)
    {
        engine.isFirst = false;
        if (group.overlapsIssue && !IsDescribed(flow))
        {
            Prepare(endpointIndex, engineIndex);
        }
    }
    const uint32_t piece = std::min(engine.leftBytes, PieceBytes(flow));
    const bool isRead = (flow.operation & UB_READ) != 0;
    int64_t donePs = nowPs;
    if (flow.src == flow.dst)
    {
        ++m_packetsSent;
        m_bytesSent += piece;
        UbDelivery copy{};
        copy.tailPs = nowPs + UbSerialisePs(piece, endpoint.copyBytesPerS);
        copy.headPs = nowPs;
        copy.flow = engine.flow;
        copy.payloadBytes = static_cast<uint16_t>(piece);
        AddIssue(engine.flow, nowPs);
        Arrive(Flow(engine.flow), copy);
    }
    else if (IsPostedWrite(flow))
    {
        ++m_packetsSent;
        m_bytesSent += piece;
        UbInjection injection{};
        injection.flow = engine.flow;
        injection.srcEndpoint = flow.src;
        injection.dstEndpoint = flow.dst;
        injection.payloadBytes = piece;
        injection.wireBytes = piece == m_packetBytes[flow.network]
                                  ? m_fullWireBytes[flow.network]
                                  : Framed(flow.network, piece + m_headerBytes[flow.network]);
        injection.lane = flow.lane;
        injection.congestion = UB_PACKET_WRITES;
        if (!SendPacket(injection, flow.network, nowPs))
        {
            Park({injection, flow.network, 0, nowPs}, nowPs);
        }
        donePs = injection.readyPs; // the engine waits while the egress is behind
        AddIssue(engine.flow, donePs);
    }
    else
    {
        donePs =
            m_transports[flow.network]->HandOver({engine.flow, endpointIndex, engineIndex, piece},
                                                 nowPs);
        if (donePs == UB_NEVER)
        {
            return; // it hands over the same piece again when the transport says so
        }
        // nobody waits for what is posted, an answer that brings data included
        m_jobs[engine.job].unfinished += IsPosted(flow.network) ? 0 : 1;
    }
    engine.leftBytes -= piece;
    if (engine.leftBytes > 0)
    {
        int64_t untilPs;
        if (IsDescribed(flow))
        {
            // a core describes each piece, a descriptor of SDMA is for the whole transfer
            untilPs = engineIndex < endpoint.nCores ? group.issueCostPs : 0;
        }
        else if (isRead)
        {
            untilPs = StreamPs(group, flow, piece); // takes the data in while it comes
        }
        else
        {
            untilPs = StreamPs(group, flow, std::min(engine.leftBytes, PieceBytes(flow)));
        }
        Push(donePs + untilPs, EMIT, endpointIndex * MAX_ENGINES + engineIndex, 0);
        return;
    }
    JobStep(engine.job, endpointIndex, donePs);
    engine.freePs = donePs + (isRead ? StreamPs(group, flow, piece) : 0);
    group.hungry &= ~(uint64_t{1} << engineIndex);
    if (engine.nextFlow != UB_NONE)
    {
        const uint32_t next = engine.nextFlow;
        engine.nextFlow = UB_NONE;
        Start(endpointIndex,
              engineIndex,
              next,
              engine.nextJob,
              std::max(engine.freePs, engine.nextReadyPs));
        return;
    }
    if (!TakeMessage(endpointIndex, engineIndex, engine.freePs))
    {
        group.idle |= uint64_t{1} << engineIndex;
    }
}

void
UbEndpointProcess::JobStep(uint32_t index, uint32_t endpoint, int64_t nowPs)
{
    Job& job = m_jobs[index];
    job.issuedPs = std::max(job.issuedPs, nowPs);
    if (--job.unfinished > 0)
    {
        return;
    }
    if (job.partner != UB_NONE)
    {
        Job& partner = m_jobs[job.partner];
        partner.issuedPs = std::max(partner.issuedPs, job.issuedPs);
        partner.partner = UB_NONE;
    }
    else if (job.task != UB_NONE)
    {
        Push(job.issuedPs, JOB_ISSUED, endpoint, job.task);
    }
    m_freeJobs.push_back(index);
}

void
UbEndpointProcess::Arrive(UbFlowRecord& flow, const UbDelivery& delivery)
{
    m_bytesDelivered += delivery.payloadBytes;
    flow.firstBytePs = std::min(flow.firstBytePs, delivery.headPs);
    flow.finishPs = std::max(flow.finishPs, delivery.tailPs);
    flow.queueingPs += delivery.waitedPs;
    flow.hops = std::max(flow.hops, delivery.hops);
    if (--flow.packetsLeft == 0)
    {
        const uint32_t receiver = Receiver(flow);
        flow.finishPs += m_endpoints[receiver].receiveLatencyPs;
        Push(flow.finishPs, FLOW_SEEN, receiver, delivery.flow);
    }
}

void
UbEndpointProcess::AddIssue(uint32_t reference, int64_t readyPs)
{
    const Chunk& chunk = ChunkOf(reference);
    if (chunk.accounts != nullptr)
    {
        const uint32_t index = IndexOf(reference);
        chunk.accounts[index].issuePs += readyPs - chunk.flows[index].startPs;
    }
}

void
UbEndpointProcess::AddAccount(uint32_t reference,
                              const int64_t (&waitedPs)[4],
                              int64_t serialisePs,
                              int64_t propagatePs,
                              int64_t switchPs)
{
    const Chunk& chunk = ChunkOf(reference);
    if (chunk.accounts == nullptr)
    {
        return;
    }
    UbFlowAccount& account = chunk.accounts[IndexOf(reference)];
    account.sourceWaitPs += waitedPs[0];
    for (uint32_t level = 0; level < 3; ++level)
    {
        account.waitPs[level] += waitedPs[level + 1];
    }
    account.serialisePs += serialisePs;
    account.propagatePs += propagatePs;
    account.switchPs += switchPs;
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
    Attend(src);
    Attend(dst);
    UbInjection injection{};
    injection.flow = UB_DEVICE_FLOW | handle;
    injection.srcEndpoint = src;
    injection.dstEndpoint = dst;
    injection.payloadBytes = bytes;
    injection.wireBytes = Framed(network, bytes + m_headerBytes[network]);
    injection.lane = lane;
    injection.ordered = true;
    if (!SendPacket(injection, network, nowPs))
    {
        Park({injection, network, 0, nowPs}, nowPs);
    }
}

UbFlowRecord&
UbEndpointProcess::FlowRecord(uint32_t flow)
{
    return Flow(flow);
}

int64_t
UbEndpointProcess::Send(UbInjection& injection, uint32_t network, int64_t nowPs)
{
    ++m_packetsSent;
    if (!SendPacket(injection, network, nowPs))
    {
        Park({injection, network, 0, nowPs}, nowPs);
    }
    if (injection.payloadBytes > 0)
    {
        AddIssue(injection.flow, injection.readyPs);
    }
    return injection.readyPs;
}

uint32_t
UbEndpointProcess::WireBytes(uint32_t network, uint32_t headerBytes, uint32_t payloadBytes) const
{
    return Framed(network, headerBytes + payloadBytes);
}

int64_t
UbEndpointProcess::EgressFreePs(uint32_t endpoint) const
{
    return m_endpoints[endpoint].egressFreePs;
}

uint64_t
UbEndpointProcess::PortBytesPerS(uint32_t endpoint, uint32_t network) const
{
    const uint64_t ports = m_endpoints[endpoint].portBytesPerS[network];
    const uint64_t egress = m_endpoints[endpoint].egressBytesPerS;
    return egress == 0 ? ports : std::min(ports, egress);
}

int64_t
UbEndpointProcess::ReceivePs(uint32_t endpoint) const
{
    return m_endpoints[endpoint].receiveLatencyPs;
}

int64_t
UbEndpointProcess::AcknowledgePs(uint32_t endpoint) const
{
    return m_endpoints[endpoint].acknowledgeLatencyPs;
}

int64_t
UbEndpointProcess::MemoryReadPs(uint32_t endpoint) const
{
    return m_endpoints[endpoint].memoryReadLatencyPs;
}

void
UbEndpointProcess::Schedule(int64_t timePs, uint32_t endpoint, const UbReaction& reaction)
{
    uint32_t index;
    if (m_freeReactions.empty())
    {
        index = static_cast<uint32_t>(m_reactions.size());
        m_reactions.emplace_back();
    }
    else
    {
        index = m_freeReactions.back();
        m_freeReactions.pop_back();
    }
    m_reactions[index] = reaction;
    Push(timePs, REACT, endpoint, index);
}

void
UbEndpointProcess::SchedulePump(int64_t timePs, uint32_t endpoint, uint32_t network)
{
    Push(timePs, PUMP, endpoint, network);
}

void
UbEndpointProcess::SetTimer(int64_t timePs, uint32_t network, uint64_t name, uint32_t index)
{
    m_timers.emplace(timePs, network, name, index);
}

void
UbEndpointProcess::CancelTimer(int64_t timePs, uint32_t network, uint64_t name)
{
    const auto found = m_timers.lower_bound({timePs, network, name, 0});
    if (found != m_timers.end() && std::get<0>(*found) == timePs &&
        std::get<1>(*found) == network && std::get<2>(*found) == name)
    {
        m_timers.erase(found);
    }
}

void
UbEndpointProcess::Deliver(const UbDelivery& delivery)
{
    Arrive(Flow(delivery.flow), delivery);
}

void
UbEndpointProcess::CountSent(uint32_t bytes)
{
    m_bytesSent += bytes;
}

void
UbEndpointProcess::Complete(uint32_t flow, int64_t nowPs)
{
    JobStep(ChunkOf(flow).jobOf[IndexOf(flow)], Flow(flow).src, nowPs);
}

void
UbEndpointProcess::Resume(uint32_t endpoint, uint32_t engine, int64_t nowPs)
{
    Push(nowPs, EMIT, endpoint * MAX_ENGINES + engine, 0);
}

void
UbEndpointProcess::Hold(uint32_t flow)
{
    ++ChunkOf(flow).held;
}

void
UbEndpointProcess::Release(uint32_t flow)
{
    Chunk& chunk = ChunkOf(flow);
    if (--chunk.held == 0)
    {
        m_tasks->TryRetire(chunk);
    }
}

void
UbEndpointProcess::Fail(uint32_t flow, int64_t nowPs)
{
    if (!m_hasFailed)
    {
        const UbFlowRecord& record = Flow(flow);
        m_hasFailed = true;
        m_error = {record.src, record.dst, record.network, nowPs, true};
    }
}

} // namespace ns3
