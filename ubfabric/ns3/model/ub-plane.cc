// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace ns3
{

namespace
{

/// Rate class of a packet that was on no link yet.
constexpr uint16_t NO_RATE = 0xffff;

/// Queues of a lane when its own are not enough at first, a power of two.
constexpr uint32_t FIRST_MORE = 8;

/// Events that a bucket should hold: few enough to sort in a moment.
constexpr double EVENTS_PER_BUCKET = 48.0;

/// How far ahead unused packets are fetched, which nobody has touched for long.
constexpr size_t PACKETS_AHEAD = 3;

/// Packets for which large planes have room from the start, for each link: memory that nobody
/// touches costs nothing, and to move packets when there is no more room does.
constexpr size_t PACKETS_PER_LINK = 4;

/// What the arrays need for a link, all in all.
constexpr size_t BYTES_PER_LINK = 512;

/// Parts per million in one.
constexpr double PPM = 1e6;

} // namespace

UbPlane::UbPlane(const UbFabricArrays& arrays,
                 uint32_t plane,
                 const UbPlaneSettings& settings,
                 const UbPlanePart& part)
    : m_memory(uint64_t{arrays.nLinks} / std::max(1U, arrays.nPlanes) * BYTES_PER_LINK),
      m_queue(&m_memory),
      m_settings(settings),
      m_nLanes(settings.nLanes),
      m_seed(UbMix(settings.seed ^ (uint64_t{plane} << 32))),
      m_localLink(arrays.nLinks, UB_NONE),
      m_switchOf(arrays.nNodes, UB_NONE),
      m_number(plane),
      m_part(part),
      m_leaving(part.nParts)
{
    m_settings.laneWeights.resize(m_nLanes, 1);
    m_inverseSpeedup = static_cast<uint32_t>(std::lround(65536.0 / settings.speedup));
    // a control block on the way changes when the reverse link is free, which only the plane's
    // own time can say
    m_sendsAhead = settings.creditReturn != UB_CREDIT_CONTROL;
    const bool isQueuedAtOutput = settings.allocator == UB_ALLOCATOR_OUTPUT_QUEUED;

    // links of the plane keep their order, so that numbers say the same in every run
    std::vector<Link> links;
    std::vector<uint32_t> nIn(arrays.nNodes, 0);
    for (uint32_t number = 0; number < arrays.nLinks; ++number)
    {
        if (arrays.linkPlane[number] != plane)
        {
            continue;
        }
        const uint32_t dst = arrays.linkDst[number];
        const uint32_t src = arrays.linkSrc[number];
        m_localLink[number] = static_cast<uint32_t>(links.size());
        m_linkNumber.push_back(number);
        m_srcNode.push_back(src);
        m_capacity.push_back(arrays.nodeBufferBytes[dst] / m_settings.cellBytes);
        Link link;
        link.delayPs = static_cast<uint32_t>(arrays.linkDelayPs[number]);
        link.rateClass = RateClass(arrays.linkBytesPerS[number]);
        for (const uint32_t node : {src, dst})
        {
            if (arrays.nodeIsEndpoint[node] == 0 && m_switchOf[node] == UB_NONE)
            {
                m_switchOf[node] = static_cast<uint32_t>(m_switches.size());
                m_switches.emplace_back();
                m_forwardPs.push_back(arrays.nodeForwardLatencyPs[node]);
                m_switches.back().node = node;
            }
        }
        if (m_switchOf[dst] != UB_NONE)
        {
            link.dstSwitch = m_switchOf[dst];
            link.dstInput = static_cast<uint16_t>(nIn[dst]++);
        }
        link.srcSwitch = m_switchOf[src];
        // measured of UB; cards of other networks write at the rate of their links
        if (link.dstSwitch == UB_NONE && arrays.nodeMemoryWritePpm != nullptr &&
            arrays.nodeMemoryWritePpm[dst] < PPM && arrays.planeNetwork[plane] == 0)
        {
            link.flags |= IS_SLOW_SINK;
            link.sink = static_cast<uint32_t>(m_sinks.size());
            m_sinks.push_back({0, arrays.nodeMemoryWritePpm[dst] / PPM});
        }
        if (m_switchOf[src] != UB_NONE)
        {
            auto& outputs = m_switches[m_switchOf[src]].outputs;
            link.outputNumber = static_cast<uint16_t>(outputs.size());
            outputs.push_back(m_localLink[number]);
        }
        links.push_back(link);
    }
    const auto nLinks = static_cast<uint32_t>(links.size());
    PlaceRecords(links);
    if (const size_t room = nLinks * PACKETS_PER_LINK;
        room * sizeof(Packet) >= UbHugePages::PAGE_BYTES)
    {
        m_packets.reserve(room);
    }
    m_noCreditPs.assign(nLinks, 0);
    m_sourceQueues.resize(m_lanes.size());
    m_deficit.assign(m_lanes.size(), 0);
    m_owed.assign(nLinks, 0);
    m_allowances.resize(settings.grantsWindows ? nLinks : 0);
    m_inLine.resize(settings.isFifo ? m_lanes.size() : 0);
    m_lineBusy.assign(m_inLine.size(), 0);
    m_stalledSincePs.assign(nLinks, 0);
    for (uint32_t i = 0; i < nLinks; ++i)
    {
        // the two directions of a cable are neighbours in the fabric
        m_reverse.push_back(m_localLink[m_linkNumber[i] ^ 1U]);
        if (arrays.linkBitErrorRate != nullptr && arrays.linkBitErrorRate[m_linkNumber[i]] > 0)
        {
            WatchLink(i).states[0].bitErrorRate = arrays.linkBitErrorRate[m_linkNumber[i]];
            m_mayBreak = true;
        }
    }

    for (uint32_t i = 0; i < (settings.retryBufferBytes == 0 ? 0 : nLinks); ++i)
    {
        // unless the buffer holds what leaves until the first of it is acknowledged
        const uint64_t rate = m_rates[m_links[i].rateClass];
        const int64_t loopPs = 2 * int64_t{m_links[i].delayPs} +
                               UbSerialisePs(settings.controlBytes, rate) +
                               UbSerialisePs(20480, rate);
        if (static_cast<double>(settings.retryBufferBytes) <
            static_cast<double>(loopPs) * 1e-12 * static_cast<double>(rate) + 20480)
        {
            m_links[i].flags |= KEEPS_LITTLE;
        }
    }

    double eventsPerPs = 0;
    for (uint32_t i = 0; i < nLinks; ++i)
    {
        Link& link = m_links[i];
        const uint32_t src = m_srcNode[i];
        const uint32_t nInputs = m_switchOf[src] == UB_NONE || isQueuedAtOutput ? 1 : nIn[src];
        link.nInputs = static_cast<uint16_t>(nInputs);
        for (uint32_t l = 0; nInputs > Waiting::N_NARROW && l < m_nLanes; ++l)
        {
            Waiting& waiting = WaitingOf<UB_ANY>(i, l);
            waiting.bits = m_words.size();
            m_words.resize(m_words.size() + (nInputs + 63) / 64);
        }
        int64_t returnPs = link.delayPs;
        if (settings.creditReturn != UB_CREDIT_IDEAL)
        {
            returnPs +=
                UbSerialisePs(settings.controlBytes, m_rates[m_links[m_reverse[i]].rateClass]) +
                (settings.creditReturn == UB_CREDIT_PIGGYBACK ? settings.creditTimeoutPs : 0);
        }
        if (!m_departures.empty())
        {
            m_departures[m_reverse[i]].keptPs = static_cast<uint32_t>(returnPs);
        }
        m_shared.push_back(m_capacity[i] - int64_t{m_nLanes} * settings.laneFloorCells);
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            Lane& lane = LaneOf<UB_ANY>(i, l);
            lane.credit = settings.isShared ? settings.laneFloorCells : m_capacity[i];
            lane.returnPs = static_cast<uint32_t>(returnPs);
            lane.ring = lane.own.data();
        }
        // a busy link has about two events for each packet of some kilobytes
        eventsPerPs +=
            2.0 /
            static_cast<double>(std::max<int64_t>(UbSerialisePs(4096, m_rates[link.rateClass]), 1));
    }
    uint32_t shift = 6;
    while (shift < 20 &&
           eventsPerPs * static_cast<double>(uint64_t{2} << shift) < EVENTS_PER_BUCKET)
    {
        ++shift;
    }
    m_queue.SetWidth(shift);
    if (m_part.ofNode)
    {
        FindCrossings();
    }
    Take(MakeRoutes(arrays));
}

void
UbPlane::FindCrossings()
{
    m_across.assign(m_links.size(), UB_NONE);
    for (uint32_t i = 0; i < m_links.size(); ++i)
    {
        const uint32_t src = (*m_part.ofNode)[m_srcNode[i]];
        const uint32_t dst = (*m_part.ofNode)[m_srcNode[m_reverse[i]]];
        if (src == dst)
        {
            continue;
        }
        if (src == m_part.number)
        {
            m_links[i].flags |= CROSSES;
            m_across[i] = dst;
        }
        else if (dst == m_part.number)
        {
            m_across[i] = src;
            for (uint32_t l = 0; l < m_nLanes; ++l)
            {
                LaneOf<UB_ANY>(i, l).isAway = true;
            }
        }
    }
}

void
UbPlane::PlaceRecords(const std::vector<Link>& links)
{
    const size_t nLanes = links.size() * m_nLanes;
    const size_t nDepartures = m_settings.creditReturn == UB_CREDIT_PIGGYBACK ? links.size() : 0;
    m_records.resize((links.size() * sizeof(Link) + nLanes * (sizeof(Waiting) + sizeof(Lane)) +
                      nDepartures * sizeof(Departures)) /
                     sizeof(CacheLine));
    // With one lane all of a link lies side by side, since a packet that leaves touches most of
    // it. With several it touches little of it, so that each kind has an array of its own.
    const bool isSideBySide = m_nLanes == 1;
    const size_t recordBytes =
        m_records.size() * sizeof(CacheLine) / std::max<size_t>(1, links.size());
    auto* memory = reinterpret_cast<std::byte*>(m_records.data());
    const auto place = [&](auto& array, size_t n) {
        const size_t bytes = sizeof(array[0]);
        array.Place(memory, isSideBySide ? recordBytes : bytes, n);
        memory += bytes * (isSideBySide ? std::min<size_t>(n, 1) : n);
    };
    place(m_waiting, nLanes);
    place(m_links, links.size());
    place(m_departures, nDepartures);
    place(m_lanes, nLanes);
    for (size_t i = 0; i < links.size(); ++i)
    {
        m_links[i] = links[i];
    }
    for (size_t i = 0; i < nDepartures; ++i)
    {
        m_departures[i].times = m_departures[i].own.data();
    }
}

uint16_t
UbPlane::RateClass(uint64_t bytesPerS)
{
    // a handful of rates in any fabric
    const auto found = std::find(m_rates.begin(), m_rates.end(), bytesPerS);
    if (found == m_rates.end())
    {
        m_rates.push_back(bytesPerS);
        return static_cast<uint16_t>(m_rates.size() - 1);
    }
    return static_cast<uint16_t>(found - m_rates.begin());
}

UbPlane::Routes
UbPlane::MakeRoutes(const UbFabricArrays& arrays) const
{
    Routes routes;
    const auto plane = arrays.linkPlane[m_linkNumber.empty() ? 0 : m_linkNumber[0]];
    const uint64_t row = uint64_t{plane} * arrays.nNodes;
    routes.ends.reserve(arrays.nNodes);
    for (uint64_t at = row; at < row + arrays.nNodes; ++at)
    {
        routes.ends.push_back(
            {arrays.endpointOut[at], arrays.endpointClass[at], arrays.endpointSlot[at]});
    }

    // groups of this plane, as ways
    std::vector<int32_t> wayOf(arrays.nGroups, -1);
    uint32_t nGroups = 0;
    for (uint32_t group = 0; group < arrays.nGroups; ++group)
    {
        const uint32_t begin = arrays.groupStart[group];
        const uint32_t end = arrays.groupStart[group + 1];
        if (begin == end || m_localLink[arrays.groupLink[begin]] == UB_NONE)
        {
            continue;
        }
        const uint32_t number = nGroups++;
        if (end - begin == 1)
        {
            wayOf[group] = static_cast<int32_t>(m_localLink[arrays.groupLink[begin]] | ONE_LINK);
            continue;
        }
        wayOf[group] = static_cast<int32_t>(routes.groups.size());
        const auto linkAt = [&](uint32_t at) { return m_localLink[arrays.groupLink[at]]; };
        uint32_t step = linkAt(begin + 1) - linkAt(begin);
        for (uint32_t at = begin + 2; at < end; ++at)
        {
            step = linkAt(at) - linkAt(at - 1) == step ? step : 0;
        }
        if (step != 0)
        {
            routes.groups.push_back({linkAt(begin), step, end - begin, number});
            continue;
        }
        // some of its links are gone, or count more than others
        routes.groups.push_back(
            {static_cast<uint32_t>(routes.groupLink.size()), 0, end - begin, number});
        for (uint32_t at = begin; at < end; ++at)
        {
            routes.groupLink.push_back(linkAt(at));
        }
    }

    // rows of this plane's switches, and of its endpoints with several ways out
    const uint32_t nClasses = arrays.planeNClasses[plane];
    routes.nClasses = nClasses;
    routes.table.reserve(m_switches.size() * (uint64_t{nClasses} + 1));
    std::vector<std::vector<uint32_t>> members(nClasses);
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        if (routes.ends[node].endpointClass >= 0)
        {
            members[routes.ends[node].endpointClass].push_back(node);
        }
    }
    std::unordered_map<int32_t, int32_t> localBase;
    auto copyRow = [&](int64_t from) {
        const uint64_t at = routes.table.size();
        for (uint32_t c = 0; c < nClasses; ++c)
        {
            int32_t entry = arrays.table[from + c];
            if (entry >= 0)
            {
                entry = wayOf[entry];
            }
            else if (entry <= -2)
            {
                const auto [found, isNew] =
                    localBase.try_emplace(entry, static_cast<int32_t>(routes.local.size()));
                if (isNew)
                {
                    // as many entries as the class has endpoints
                    for (const uint32_t node : members[c])
                    {
                        const uint64_t to = uint64_t(found->second) + routes.ends[node].slot;
                        if (routes.local.size() <= to)
                        {
                            routes.local.resize(to + 1, -1);
                        }
                        const int32_t group = arrays.local[-(entry + 2) + routes.ends[node].slot];
                        routes.local[to] = group < 0 ? -1 : wayOf[group];
                    }
                }
                entry = -(found->second + 2);
            }
            routes.table.push_back(entry);
        }
        routes.table.push_back(-1); // for destinations that are cut off
        return at;
    };
    for (const Switch& chip : m_switches)
    {
        copyRow(arrays.switchRow[chip.node]); // see RowOf
    }
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        if (arrays.nodeIsEndpoint[node] != 0 && routes.ends[node].out >= 0)
        {
            routes.ends[node].out = static_cast<int64_t>(copyRow(routes.ends[node].out));
        }
        else if (arrays.nodeIsEndpoint[node] != 0 && routes.ends[node].out <= -2)
        {
            routes.ends[node].out = -(wayOf[-(routes.ends[node].out + 2)] + 2);
        }
    }
    return routes;
}

void
UbPlane::Take(Routes&& routes)
{
    m_routes = std::move(routes);
}

uint32_t
UbPlane::Allocate()
{
    ++m_packetsInside;
    if (m_freePackets.empty())
    {
        m_packets.emplace_back();
        if (m_settings.keepsAccount)
        {
            m_accounts.emplace_back();
        }
        return static_cast<uint32_t>(m_packets.size() - 1);
    }
    const uint32_t index = m_freePackets.back();
    m_freePackets.pop_back();
    if (m_freePackets.size() >= PACKETS_AHEAD)
    {
        UbPrefetch(&m_packets[m_freePackets[m_freePackets.size() - PACKETS_AHEAD]]);
    }
    return index;
}

uint32_t
UbPlane::SentRecord(const Packet& packet)
{
    uint32_t record;
    if (m_freeSent.empty())
    {
        record = static_cast<uint32_t>(m_sent.size());
        m_sent.emplace_back();
    }
    else
    {
        record = m_freeSent.back();
        m_freeSent.pop_back();
    }
    m_sent[record] = {packet.flow, packet.wireBytes};
    return record;
}

void
UbPlane::Sent(uint32_t link, uint32_t record, int64_t nowPs, bool isRetry)
{
    const auto [flow, bytes] = m_sent[record];
    m_freeSent.push_back(record);
    if (m_observer == nullptr)
    {
        return;
    }
    if (isRetry)
    {
        m_observer->Retried(nowPs, m_linkNumber[link], flow);
    }
    else
    {
        m_observer->PacketSent(nowPs, m_linkNumber[link], flow, bytes);
    }
}

template <UbFeatures F>
void
UbPlane::InjectAs(const UbInjection& injection)
{
    const uint32_t index = Allocate();
    Packet& packet = m_packets[index];
    packet.readyPs = injection.readyPs;
    packet.waitedPs = 0;
    packet.next = UB_NONE;
    packet.flow = injection.flow;
    packet.tag = injection.tag;
    SetDestination(packet, injection.dstEndpoint);
    packet.inLink = UB_NONE;
    packet.atSwitch = UB_NONE;
    packet.wireBytes = static_cast<uint16_t>(injection.wireBytes);
    packet.payloadBytes = static_cast<uint16_t>(injection.payloadBytes);
    packet.cells = m_settings.cellBytes == 1
                       ? packet.wireBytes
                       : static_cast<uint16_t>((injection.wireBytes + m_settings.cellBytes - 1) /
                                               m_settings.cellBytes);
    packet.serialisePs = 0;
    packet.hash =
        injection.ordered ? static_cast<uint32_t>(injection.flowHash) : PathHash(injection);
    packet.rateClass = NO_RATE;
    packet.lane = injection.lane;
    packet.hops = 0;
    packet.bits = static_cast<uint8_t>(injection.congestion | (injection.ordered ? ORDERED : 0));
    packet.hint = injection.hint;
    if (KeepsAccount<F>())
    {
        m_accounts[index] = {};
        m_accounts[index].serialisePs = -injection.readyPs; // the rest comes at the end
    }
    const uint32_t link = injection.directLink != UB_NONE
                              ? m_localLink[injection.directLink]
                              : WayOut(injection.srcEndpoint, packet, injection.readyPs);
    if (link == UB_NONE)
    {
        Lose(index, injection.readyPs);
        return;
    }
    // Nothing but this call puts packets into a source's port, and they leave in order: with one
    // lane and enough credit it is known now when the packet will go, without an event.
    Lane& lane = LaneOf<F>(link, packet.lane);
    const int64_t startPs = std::max(injection.readyPs, m_links[link].busyUntilPs);
    if (m_sendsAhead && m_links[link].nWaiting == 0 &&
        (m_links[link].flags & (WATCHED | KEEPS_LITTLE)) == 0 &&
        (NLanes<F>() == 1 || startPs == injection.readyPs) &&
        HasCredit<F>(link, lane, packet.cells, startPs))
    {
        m_links[link].lastLane = packet.lane;
        if (Arbitration<F>() == UB_LANES_DEFICIT)
        {
            m_deficit[uint64_t{link} * NLanes<F>() + packet.lane] = 0; // the lane is empty
        }
        Transmit<F>(link, index, startPs);
        return;
    }
    const bool first = lane.nWaiting == 0;
    Enqueue<F>(link, 0, index);
    if (first)
    {
        Wake<F>(link, startPs);
    }
}

void
UbPlane::SetDestination(Packet& packet, uint32_t endpoint) const
{
    const int32_t dstClass = m_routes.ends[endpoint].endpointClass;
    packet.dstClass = dstClass < 0 ? m_routes.nClasses : static_cast<uint32_t>(dstClass);
    packet.dstSlot = static_cast<uint16_t>(std::max(0, m_routes.ends[endpoint].slot));
}

uint32_t
UbPlane::WayOut(uint32_t endpoint, const Packet& packet, int64_t nowPs)
{
    const int64_t out = m_routes.ends[endpoint].out;
    int32_t way = -1;
    if (out <= -2)
    {
        way = static_cast<int32_t>(-(out + 2));
    }
    else if (out >= 0)
    {
        way = m_routes.table[out + packet.dstClass];
        if (way <= -2)
        {
            way = m_routes.local[-(way + 2) + packet.dstSlot];
        }
    }
    return way < 0 ? UB_NONE : Choose(static_cast<uint32_t>(way), packet, nowPs);
}

bool
UbPlane::HasRoute(uint32_t src, uint32_t dst) const
{
    const int32_t dstClass = m_routes.ends[dst].endpointClass;
    if (dstClass < 0 || m_routes.ends[src].endpointClass < 0)
    {
        return false;
    }
    auto leads = [&](uint64_t row) {
        const int32_t entry = m_routes.table[row + dstClass];
        return entry >= 0 ||
               (entry <= -2 && m_routes.local[-(entry + 2) + m_routes.ends[dst].slot] >= 0);
    };
    const int64_t out = m_routes.ends[src].out;
    if (out >= 0)
    {
        return leads(static_cast<uint64_t>(out));
    }
    if (out == -1)
    {
        return false;
    }
    const auto way = static_cast<uint32_t>(-(out + 2));
    const uint32_t first =
        (way & ONE_LINK) != 0 ? way & ~ONE_LINK : m_routes.LinkOf(m_routes.groups[way], 0);
    return leads(RowOf(m_links[first].dstSwitch));
}

int64_t
UbPlane::BacklogPs(uint32_t src, int64_t nowPs) const
{
    const int64_t out = m_routes.ends[src].out;
    int64_t least = UB_NEVER;
    auto look = [&](uint32_t link) {
        int64_t backlogPs = std::max<int64_t>(0, m_links[link].busyUntilPs - nowPs);
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            backlogPs += UbSerialisePs(m_lanes[uint64_t{link} * m_nLanes + l].waitingBytes,
                                       m_rates[m_links[link].rateClass]);
        }
        least = std::min(least, backlogPs);
    };
    if (out <= -2)
    {
        const auto way = static_cast<uint32_t>(-(out + 2));
        if ((way & ONE_LINK) != 0)
        {
            look(way & ~ONE_LINK);
            return least;
        }
        const Group& group = m_routes.groups[way];
        for (uint32_t choice = 0; choice < group.nLinks; ++choice)
        {
            look(m_routes.LinkOf(group, choice));
        }
        return least;
    }
    // several ways out: the ports of the endpoint are the links that leave it
    for (uint32_t link = 0; link < m_links.size(); ++link)
    {
        if (m_srcNode[link] == src && m_links[link].dstSwitch != UB_NONE)
        {
            look(link);
        }
    }
    return least;
}

[[gnu::always_inline]] inline UbPlane::Queue&
UbPlane::OpenQueue(Waiting& waiting, uint32_t nInputs, uint32_t input)
{
    if (nInputs > Waiting::N_NARROW)
    {
        if (waiting.more == UB_NONE)
        {
            waiting.more = static_cast<uint32_t>(m_queues.size());
            m_queues.resize(m_queues.size() + nInputs);
        }
        m_words[waiting.bits + input / 64] |= uint64_t{1} << (input % 64);
        return m_queues[waiting.more + input];
    }
    if (waiting.nQueues == waiting.nPlaces)
    {
        MoveQueues(waiting, waiting.more == UB_NONE ? FIRST_MORE : 2U * waiting.nPlaces);
    }
    Queue* queues = QueuesOf(waiting);
    const uint32_t place = PlaceOf(waiting, nInputs, input);
    for (uint32_t at = waiting.nQueues; at > place; --at)
    {
        queues[at] = queues[at - 1]; // rarely any
    }
    waiting.bits |= uint64_t{1} << input;
    ++waiting.nQueues;
    return queues[place];
}

[[gnu::always_inline]] inline void
UbPlane::CloseQueue(Waiting& waiting, uint32_t nInputs, uint32_t input, uint32_t place)
{
    if (nInputs > Waiting::N_NARROW)
    {
        m_words[waiting.bits + input / 64] &= ~(uint64_t{1} << (input % 64));
        return;
    }
    Queue* queues = QueuesOf(waiting);
    for (uint32_t at = place + 1; at < waiting.nQueues; ++at)
    {
        queues[at - 1] = queues[at]; // rarely any
    }
    waiting.bits &= ~(uint64_t{1} << input);
    --waiting.nQueues;
    if (waiting.more != UB_NONE && waiting.nQueues < Waiting::N_OWN)
    {
        MoveQueues(waiting, Waiting::N_OWN);
    }
}

template <UbFeatures F>
void
UbPlane::Enqueue(uint32_t linkIndex, uint32_t input, uint32_t index)
{
    Link& link = m_links[linkIndex];
    Packet& packet = m_packets[index];
    Lane& lane = LaneOf<F>(linkIndex, packet.lane);
    if (link.nInputs == 1)
    {
        input = 0; // also where packets of all inputs wait at their output
    }
    Waiting& waiting = WaitingOf<F>(linkIndex, packet.lane);
    packet.next = UB_NONE;
    if ((WordsOf(waiting, link.nInputs)[input / 64] >> (input % 64) & 1) == 0)
    {
        OpenQueue(waiting, link.nInputs, input) = {index, index, packet.readyPs};
    }
    else
    {
        Queue& queue = QueuesOf(waiting)[PlaceOf(waiting, link.nInputs, input)];
        m_packets[queue.tail].next = index;
        queue.tail = index;
    }
    ++link.nWaiting;
    ++lane.nWaiting;
    lane.waitingBytes += packet.wireBytes;
    if (packet.inLink != UB_NONE)
    {
        lane.maxWaitingBytes = std::max(lane.maxWaitingBytes, lane.waitingBytes);
        if (Marks<F>() && (packet.bits & UB_CONGESTION_CAPABLE) != 0 &&
            lane.waitingBytes > m_settings.markBytes)
        {
            Mark(packet, lane.waitingBytes);
        }
    }
}

void
UbPlane::MoveQueues(Waiting& waiting, uint32_t nPlaces)
{
    const uint32_t before = waiting.more;
    uint32_t more = UB_NONE;
    if (nPlaces > Waiting::N_OWN)
    {
        std::vector<uint32_t>& unused = m_freeQueues[__builtin_ctz(nPlaces)];
        if (unused.empty())
        {
            more = static_cast<uint32_t>(m_queues.size());
            m_queues.resize(m_queues.size() + nPlaces);
        }
        else
        {
            more = unused.back();
            unused.pop_back();
        }
    }
    const Queue* from = QueuesOf(waiting);
    std::copy(from, from + waiting.nQueues, more == UB_NONE ? waiting.own.data() : &m_queues[more]);
    if (before != UB_NONE)
    {
        m_freeQueues[__builtin_ctz(waiting.nPlaces)].push_back(before);
    }
    waiting.more = more;
    waiting.nPlaces = static_cast<uint16_t>(nPlaces);
}

void
UbPlane::Mark(Packet& packet, uint64_t waitingBytes) const
{
    double share = 1.0;
    if (waitingBytes < m_settings.markAllBytes)
    {
        share = m_settings.markShare * static_cast<double>(waitingBytes - m_settings.markBytes) /
                static_cast<double>(m_settings.markAllBytes - m_settings.markBytes);
    }
    // the packet's own numbers are its luck, so that it depends on nothing else
    const uint64_t luck =
        UbMix(m_seed ^ UbMix((uint64_t{packet.flow} << 32) | packet.tag) ^
              (uint64_t{packet.hops} << 56) ^ static_cast<uint64_t>(packet.readyPs));
    if (static_cast<double>(luck >> 11) * 0x1p-53 < share)
    {
        packet.bits |= UB_CONGESTION_MARKED;
    }
}

void
UbPlane::CountAtSource(SourceQueue& queue, int64_t readyPs, int64_t startPs, uint32_t bytes)
{
    while (queue.first < queue.waiting.size() && queue.waiting[queue.first].startPs <= readyPs)
    {
        queue.bytes -= queue.waiting[queue.first].bytes;
        ++queue.first;
    }
    if (2 * queue.first >= queue.waiting.size())
    {
        queue.waiting.erase(queue.waiting.begin(),
                            queue.waiting.begin() + static_cast<std::ptrdiff_t>(queue.first));
        queue.first = 0;
    }
    if (startPs > readyPs)
    {
        queue.waiting.push_back({startPs, bytes});
        queue.bytes += bytes;
        queue.maxBytes = std::max(queue.maxBytes, queue.bytes);
    }
}

void
UbPlane::Grant(uint32_t linkIndex, Packet& packet, int64_t nowPs)
{
    const Link& link = m_links[linkIndex];
    Allowance& allowance = m_allowances[linkIndex];
    const int64_t periods = (nowPs - allowance.fromPs) / m_settings.grantPeriodPs;
    if (periods > 0 || allowance.isFresh)
    {
        // what is left of the rate, less what waits beyond the target; idle periods leave nothing
        const bool isIdle = periods > 1 || allowance.isFresh;
        uint64_t waitingBytes = 0;
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            waitingBytes += LaneOf<UB_ANY>(linkIndex, l).waitingBytes;
        }
        const double possible = static_cast<double>(m_settings.grantPeriodPs) * 1e-12 *
                                static_cast<double>(m_rates[link.rateClass]);
        allowance.credit = m_settings.grantGain *
                           (possible - (isIdle ? 0.0 : static_cast<double>(allowance.bytes)) +
                            static_cast<double>(m_settings.grantQueueBytes) -
                            static_cast<double>(waitingBytes) - (isIdle ? 0.0 : allowance.granted));
        allowance.fromPs += periods * m_settings.grantPeriodPs;
        allowance.bytes = 0;
        allowance.granted = 0;
        allowance.taken = 0;
        allowance.isFresh = false;
    }
    allowance.bytes += packet.wireBytes;
    const bool asks = (packet.bits & UB_CONGESTION_GROW) != 0;
    const double wanted = asks ? static_cast<double>(packet.hint) * m_settings.grantUnitBytes : 0.0;
    constexpr auto refused = static_cast<uint8_t>(~UB_CONGESTION_GROW);
    if ((packet.bits & UB_CONGESTION_MARKED) != 0)
    {
        allowance.credit += m_settings.grantMarkBytes;
        allowance.granted -= m_settings.grantMarkBytes;
    }
    else if (allowance.credit >= wanted)
    {
        allowance.credit -= wanted;
        allowance.granted += wanted;
    }
    else if (allowance.credit >= 0)
    {
        const uint64_t luck = UbMix(m_seed ^ UbMix((uint64_t{packet.flow} << 32) | packet.tag) ^
                                    (uint64_t{packet.hops} << 56) ^ static_cast<uint64_t>(nowPs));
        if (static_cast<double>(luck >> 11) * 0x1p-53 < m_settings.grantMarkShare)
        {
            packet.bits = static_cast<uint8_t>((packet.bits & refused) | UB_CONGESTION_MARKED);
            allowance.taken += m_settings.grantMarkBytes;
        }
        else if (allowance.taken >= wanted)
        {
            allowance.taken -= wanted;
        }
        else
        {
            packet.bits &= refused;
        }
    }
    else
    {
        packet.bits = static_cast<uint8_t>((packet.bits & refused) | UB_CONGESTION_MARKED);
        allowance.credit += m_settings.grantMarkBytes;
    }
}

int64_t
UbPlane::RetryRoomPs(uint32_t link, uint32_t bytes, int64_t nowPs)
{
    Unacknowledged& kept = m_unacknowledged[link];
    while (!kept.packets.empty() && kept.packets.front().first <= nowPs)
    {
        kept.bytes -= kept.packets.front().second;
        kept.packets.pop_front();
    }
    uint64_t left = kept.bytes;
    int64_t roomPs = nowPs;
    for (auto at = kept.packets.begin();
         at != kept.packets.end() && left + bytes > m_settings.retryBufferBytes;
         ++at)
    {
        roomPs = at->first;
        left -= at->second;
    }
    return roomPs;
}

template <UbFeatures F>
[[gnu::always_inline]] inline void
UbPlane::NoteDeparture(uint32_t link, int64_t startPs, int64_t nowPs)
{
    Departures& departures = m_departures[link];
    if (departures.count == departures.size)
    {
        // credits from before that are back by now in any case
        const int64_t oldPs = m_lastPs - departures.keptPs;
        while (departures.count > 0 && departures.At(0) < oldPs)
        {
            departures.first = departures.Place(1);
            --departures.count;
        }
        if (departures.count == departures.size)
        {
            GrowTimes(departures);
        }
    }
    departures.times[departures.Place(departures.count++)] = startPs;
    if ((m_links[link].flags & AWAITED) != 0)
    {
        WakeAwaiting<F>(link, nowPs);
    }
}

void
UbPlane::GrowTimes(Departures& departures)
{
    auto times = std::make_unique<int64_t[]>(2 * departures.count);
    for (uint32_t i = 0; i < departures.count; ++i)
    {
        times[i] = departures.At(i);
    }
    departures.times = times.get();
    departures.first = 0;
    departures.size = 2 * departures.count;
    m_moreTimes.push_back(std::move(times));
}

template <UbFeatures F>
int64_t
UbPlane::NextCreditPs(uint32_t link, const Lane& lane) const
{
    const int64_t restPs = lane.rest > 0 ? lane.restPs : UB_NEVER;
    return lane.ringCount > 0 ? std::min(restPs, FirstCreditPs<F>(link, lane)) : restPs;
}

template <UbFeatures F>
int64_t
UbPlane::FirstCreditPs(uint32_t link, const Lane& lane) const
{
    const Credit* credit = &lane.ring[lane.ringHead];
    if (CreditReturn<F>() != UB_CREDIT_PIGGYBACK)
    {
        return credit->timePs;
    }
    const int64_t restPs = credit->isRest ? credit->timePs : UB_NEVER; // nothing else comes with it
    for (uint32_t i = 1; credit->isRest; ++i)
    {
        if (i == lane.ringCount)
        {
            return restPs;
        }
        credit = &lane.ring[(lane.ringHead + i) & lane.RingMask()];
    }
    const int64_t latestPs = std::min(credit->timePs, restPs);
    // it rides on the first packet that leaves after the buffer was free
    const Departures& departures = m_departures[m_reverse[link]];
    const int64_t freePs = credit->timePs - lane.returnPs;
    uint32_t first = departures.count;
    while (first > 0 && departures.At(first - 1) >= freePs)
    {
        --first; // few have left since
    }
    return first == departures.count
               ? latestPs
               : std::min(latestPs,
                          departures.At(first) + lane.returnPs - m_settings.creditTimeoutPs);
}

template <UbFeatures F>
void
UbPlane::CollectCredits(uint32_t link, Lane& lane, int64_t nowPs)
{
    const int64_t before = lane.credit;
    while (lane.ringCount > 0 &&
           (lane.ring[lane.ringHead].timePs <= nowPs || FirstCreditPs<F>(link, lane) <= nowPs))
    {
        if (__builtin_expect(lane.ring[lane.ringHead].timePs > nowPs &&
                                 lane.ring[lane.ringHead].isRest,
                             false))
        {
            OvertakeRest(lane);
        }
        PopCredit(lane);
    }
    TakeRest(lane, nowPs);
    if (IsShared<F>())
    {
        m_shared[link] += std::max<int64_t>(0, -before) - std::max<int64_t>(0, -lane.credit);
    }
}

void
UbPlane::OvertakeRest(Lane& lane)
{
    uint32_t at = lane.ringHead;
    while (lane.ring[at & lane.RingMask()].isRest)
    {
        ++at;
    }
    for (; at != lane.ringHead; --at)
    {
        std::swap(lane.ring[at & lane.RingMask()], lane.ring[(at - 1) & lane.RingMask()]);
    }
}

template <UbFeatures F>
bool
UbPlane::HasShared(uint32_t link, const Lane& lane, uint32_t cells, int64_t nowPs)
{
    for (uint32_t l = 0; l < NLanes<F>(); ++l)
    {
        CollectCredits<F>(link, LaneOf<F>(link, l), nowPs);
    }
    return std::max<int64_t>(0, lane.credit) + m_shared[link] >= cells;
}

void
UbPlane::GrowRing(Lane& lane)
{
    const uint32_t size = lane.RingMask() + 1;
    auto ring = std::make_unique<Credit[]>(2 * size);
    for (uint32_t i = 0; i < size; ++i)
    {
        ring[i] = lane.ring[(lane.ringHead + i) & lane.RingMask()];
    }
    lane.ring = ring.get();
    lane.ringHead = 0;
    ++lane.ringBits;
    m_moreRings.push_back(std::move(ring));
}

[[gnu::always_inline]] inline void
UbPlane::PutCredit(Lane& lane, const Credit& credit)
{
    if (lane.ringCount > lane.RingMask())
    {
        GrowRing(lane);
    }
    // packets leave a buffer through several outputs, so credits come nearly in order of time
    const uint32_t mask = lane.RingMask();
    uint32_t at = lane.ringHead + lane.ringCount++;
    while (at != lane.ringHead && lane.ring[(at - 1) & mask].timePs > credit.timePs)
    {
        lane.ring[at & mask] = lane.ring[(at - 1) & mask];
        --at;
    }
    lane.ring[at & mask] = credit;
}

template <UbFeatures F>
[[gnu::always_inline]] inline void
UbPlane::ReturnCredit(uint32_t link, Lane& lane, uint32_t cells, int64_t freePs, int64_t nowPs)
{
    if (CreditReturn<F>() == UB_CREDIT_CONTROL)
    {
        ++m_owed[m_reverse[link]];
    }
    if (__builtin_expect(lane.isAway, false))
    {
        m_leaving[m_across[link]].credits.push_back(
            {freePs, static_cast<uint32_t>(m_lanes.IndexOf(lane)), cells});
        return;
    }
    NoteCredit<F>(link, lane, cells, freePs, nowPs);
}

template <UbFeatures F>
[[gnu::always_inline]] inline void
UbPlane::NoteCredit(uint32_t linkIndex, Lane& lane, uint32_t cells, int64_t freePs, int64_t nowPs)
{
    // take in what has come by now: the ring stays as short as the cable. Whether credits came
    // earlier, on a packet, is found out when somebody needs to know.
    if (IsShared<F>())
    {
        CollectCredits<F>(linkIndex, lane, nowPs);
    }
    while (lane.ringCount > 0 && lane.ring[lane.ringHead].timePs <= nowPs)
    {
        PopCredit(lane);
    }
    TakeRest(lane, nowPs);
    const int64_t arrivalPs = freePs + lane.returnPs;
    if (CreditReturn<F>() == UB_CREDIT_PIGGYBACK && m_settings.creditGrain > 1)
    {
        // a header counts in whole grains; the rest waits for more, or for a control block
        if (lane.rest > 0 && lane.restPs - (lane.returnPs - m_settings.creditTimeoutPs) < freePs)
        {
            PutCredit(lane, {lane.restPs, lane.rest, true}); // that has left before
            lane.rest = 0;
        }
        const uint32_t total = cells + lane.rest;
        lane.rest = static_cast<uint8_t>(total % m_settings.creditGrain);
        lane.restPs = arrivalPs;
        cells = total - lane.rest;
    }
    if (cells > 0)
    {
        PutCredit(lane, {arrivalPs, cells});
    }
    if (__builtin_expect(lane.needsCredit ||
                             (IsShared<F>() && (m_links[linkIndex].flags & STALLED) != 0),
                         false))
    {
        // what has come by now has woken the link before
        const int64_t nextPs = NextCreditPs<F>(linkIndex, lane);
        if (nextPs > nowPs && nextPs != UB_NEVER)
        {
            Wake<F>(linkIndex, std::max(nextPs, m_links[linkIndex].busyUntilPs));
        }
    }
}

uint32_t
UbPlane::NextInput(const uint64_t* bits, uint32_t words, uint32_t from)
{
    uint32_t word = from / 64;
    uint64_t candidates = bits[word] & (~uint64_t{0} << (from % 64));
    while (candidates == 0)
    {
        word = word + 1 < words ? word + 1 : 0;
        candidates = bits[word];
    }
    return word * 64 + static_cast<uint32_t>(__builtin_ctzll(candidates));
}

template <UbFeatures F>
inline UbPlane::Candidate
UbPlane::Find(uint32_t linkIndex, int64_t nowPs)
{
    Candidate found;
    const Link& link = m_links[linkIndex];
    const uint32_t nWords = (link.nInputs + 63U) / 64;
    const bool isMatched = IsMatched<F>(link);
    // with deficit round robin the lane served last goes on while its deficit lasts
    const uint32_t firstStep = Arbitration<F>() == UB_LANES_DEFICIT ? 0 : 1;
    for (uint32_t step = firstStep; step <= NLanes<F>(); ++step)
    {
        const uint32_t laneIndex = Arbitration<F>() == UB_LANES_STRICT
                                       ? NLanes<F>() - step
                                       : (link.lastLane + step) % NLanes<F>();
        Lane& lane = LaneOf<F>(linkIndex, laneIndex);
        if (lane.nWaiting == 0)
        {
            continue;
        }
        lane.needsCredit = false; // unless it turns out below that nothing else is missing
        // round robin: the next input, after the one served last, that has a packet ready
        Waiting& waiting = WaitingOf<F>(linkIndex, laneIndex);
        const Queue* queues = QueuesOf(waiting);
        const uint64_t* words = WordsOf(waiting, link.nInputs);
        uint32_t input =
            NextInput(words, nWords, lane.lastInput + 1U < link.nInputs ? lane.lastInput + 1U : 0);
        uint32_t place = PlaceOf(waiting, link.nInputs, input);
        const uint32_t first = input;
        uint32_t index = UB_NONE;
        do
        {
            const Queue& queue = queues[place];
            // its tail may still come in on a slower link, or its input feed another output
            int64_t openPs = queue.readyPs;
            if (isMatched)
            {
                openPs = std::max(openPs, InputOf<F>(m_packets[queue.head]).readPs);
            }
            if (openPs > nowPs)
            {
                found.wakePs = std::min(found.wakePs, openPs);
            }
            else if ((link.flags & WATCHED) == 0 ||
                     CanCross(linkIndex, m_packets[queue.head], nowPs))
            {
                index = queue.head;
                break;
            }
            input = NextInput(words, nWords, input + 1 < link.nInputs ? input + 1 : 0);
            place = link.nInputs > Waiting::N_NARROW ? input
                    : place + 1U < waiting.nQueues   ? place + 1
                                                     : 0;
        } while (input != first);
        if (index == UB_NONE)
        {
            continue;
        }
        const Packet& packet = m_packets[index];
        if ((link.flags & KEEPS_LITTLE) != 0)
        {
            const int64_t roomPs = RetryRoomPs(linkIndex, packet.wireBytes, nowPs);
            if (roomPs > nowPs)
            {
                found.wakePs = std::min(found.wakePs, roomPs);
                continue;
            }
        }
        if (step == 0 &&
            m_deficit[uint64_t{linkIndex} * NLanes<F>() + laneIndex] < int64_t{packet.wireBytes})
        {
            continue;
        }
        if (!HasCredit<F>(linkIndex, lane, packet.cells, nowPs))
        {
            found.isStalled = true;
            lane.needsCredit = true;
            found.wakePs = std::min(found.wakePs, NextCreditPs<F>(linkIndex, lane));
            for (uint32_t l = 0; l < (IsShared<F>() ? NLanes<F>() : 0); ++l)
            {
                found.wakePs =
                    std::min(found.wakePs, NextCreditPs<F>(linkIndex, LaneOf<F>(linkIndex, l)));
            }
            continue;
        }
        found.lane = laneIndex;
        found.input = input;
        found.place = place;
        found.packet = index;
        return found;
    }
    return found;
}

template <UbFeatures F>
void
UbPlane::Send(uint32_t linkIndex, const Candidate& candidate, int64_t nowPs, bool movesTurn)
{
    Link& link = m_links[linkIndex];
    Lane& lane = LaneOf<F>(linkIndex, candidate.lane);
    Waiting& waiting = WaitingOf<F>(linkIndex, candidate.lane);
    Packet& packet = m_packets[candidate.packet];
    lane.needsCredit = false;
    if (packet.next == UB_NONE)
    {
        CloseQueue(waiting, link.nInputs, candidate.input, candidate.place);
    }
    else
    {
        Queue& queue = QueuesOf(waiting)[candidate.place];
        queue.head = packet.next;
        queue.readyPs = m_packets[queue.head].readyPs;
    }
    --link.nWaiting;
    --lane.nWaiting;
    lane.waitingBytes -= packet.wireBytes;
    if (Arbitration<F>() == UB_LANES_DEFICIT)
    {
        int64_t& deficit = m_deficit[uint64_t{linkIndex} * NLanes<F>() + candidate.lane];
        if (candidate.lane != link.lastLane || deficit < int64_t{packet.wireBytes})
        {
            deficit += int64_t{m_settings.laneWeights[candidate.lane]} * m_settings.quantumBytes;
        }
        // endpoints hand packets over ahead of time: those to come do not count as waiting
        const bool isBacklogged = lane.nWaiting > 0 && (packet.inLink != UB_NONE ||
                                                        m_packets[packet.next].readyPs < nowPs);
        deficit = isBacklogged ? deficit - packet.wireBytes : 0;
    }
    if (movesTurn)
    {
        lane.lastInput = static_cast<uint16_t>(candidate.input);
    }
    link.lastLane = static_cast<uint8_t>(candidate.lane);
    Transmit<F>(linkIndex, candidate.packet, nowPs);
    if (link.nWaiting > 0)
    {
        Wake<F>(linkIndex, link.busyUntilPs);
    }
}

template <UbFeatures F>
void
UbPlane::Stall(uint32_t linkIndex, const Candidate& candidate, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    if (candidate.isStalled)
    {
        m_links[m_reverse[linkIndex]].flags |= AWAITED;
        if ((link.flags & STALLED) == 0)
        {
            link.flags |= STALLED;
            m_stalledSincePs[linkIndex] = nowPs;
            if (m_observer != nullptr)
            {
                m_observer->CreditStall(nowPs, m_linkNumber[linkIndex]);
            }
        }
    }
    if (candidate.wakePs != UB_NEVER)
    {
        Wake<F>(linkIndex, candidate.wakePs);
    }
}

template <UbFeatures F>
void
UbPlane::Serve(uint32_t linkIndex, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    if (link.busyUntilPs > nowPs)
    {
        Wake<F>(linkIndex, link.busyUntilPs);
        return;
    }
    const Candidate candidate = Find<F>(linkIndex, nowPs);
    if (candidate.packet == UB_NONE)
    {
        Stall<F>(linkIndex, candidate, nowPs);
        return;
    }
    Send<F>(linkIndex, candidate, nowPs, true);
}

template <UbFeatures F>
void
UbPlane::Match(uint32_t index, int64_t nowPs)
{
    auto& outputs = m_matching;
    if (outputs.size() == 1)
    {
        // nobody to compete with: what is granted is accepted
        const uint32_t link = outputs[0].first;
        const Candidate candidate = Find<F>(link, nowPs);
        if (candidate.packet == UB_NONE)
        {
            Stall<F>(link, candidate, nowPs);
            return;
        }
        InputOf<F>(m_packets[candidate.packet]).turn = m_links[link].outputNumber;
        Send<F>(link, candidate, nowPs, true);
        return;
    }
    const auto nOutputs = static_cast<uint32_t>(m_switches[index].outputs.size());
    for (uint32_t iteration = 0; iteration < m_settings.iterations && !outputs.empty(); ++iteration)
    {
        // grant: each output picks one of the inputs that ask for it
        for (auto& [link, candidate] : outputs)
        {
            candidate = Find<F>(link, nowPs);
        }
        // accept: each input takes the granting output that comes first after its last one
        size_t left = 0;
        bool isAnyMatched = false;
        for (size_t i = 0; i < outputs.size(); ++i)
        {
            const auto [link, candidate] = outputs[i];
            if (candidate.packet == UB_NONE)
            {
                Stall<F>(link, candidate, nowPs);
                continue;
            }
            const uint32_t turn = InputOf<F>(m_packets[candidate.packet]).turn;
            auto rank = [&](uint32_t output) {
                return (m_links[output].outputNumber + nOutputs - turn - 1) % nOutputs;
            };
            bool isAccepted = true;
            for (size_t j = 0; j < outputs.size() && isAccepted; ++j)
            {
                isAccepted = outputs[j].second.packet == UB_NONE ||
                             outputs[j].second.input != candidate.input ||
                             rank(outputs[j].first) >= rank(link);
            }
            if (isAccepted)
            {
                m_accepted.push_back(i);
                isAnyMatched = true;
            }
        }
        for (const size_t i : m_accepted)
        {
            const auto [link, candidate] = outputs[i];
            if (iteration == 0)
            {
                InputOf<F>(m_packets[candidate.packet]).turn = m_links[link].outputNumber;
            }
            outputs[i].first = UB_NONE;
            Send<F>(link, candidate, nowPs, iteration == 0);
        }
        m_accepted.clear();
        for (const auto& output : outputs)
        {
            if (output.first != UB_NONE && output.second.packet != UB_NONE)
            {
                outputs[left++] = output;
            }
        }
        outputs.resize(left);
        if (!isAnyMatched)
        {
            break;
        }
    }
    for (const auto& [link, candidate] : outputs)
    {
        // out of iterations: the next try is when the input that went elsewhere is free
        Wake<F>(link, std::max(nowPs + 1, InputOf<F>(m_packets[candidate.packet]).readPs));
    }
}

template <UbFeatures F>
void
UbPlane::Transmit(uint32_t linkIndex, uint32_t index, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    Packet& packet = m_packets[index];
    Lane& lane = LaneOf<F>(linkIndex, packet.lane);
    if (packet.inLink != UB_NONE)
    {
        // for the credit further below
        const uint64_t in = uint64_t{packet.inLink} * NLanes<F>();
        UbPrefetch(&m_lanes[in]);
        UbPrefetch(&m_lanes[in].own);
    }
    const int64_t startPs =
        (link.flags & WATCHED) == 0 ? nowPs : StartWatched(linkIndex, packet, nowPs);
    const int64_t serialisePs = SerialisePs(link, packet);
    const int64_t endPs = startPs + serialisePs;
    if ((link.flags & WATCHED) != 0)
    {
        m_watches.at(linkIndex).busyPs += endPs - nowPs;
    }
    const int64_t waitedPs = startPs - packet.readyPs;
    packet.waitedPs += waitedPs;
    if (CreditReturn<F>() == UB_CREDIT_CONTROL && m_owed[linkIndex] > 0)
    {
        // control blocks that went since the last packet, as far as the link was not idle
        const int64_t controlPs =
            UbSerialisePs(uint64_t{m_owed[linkIndex]} * m_settings.controlBytes,
                          m_rates[link.rateClass]);
        m_owed[linkIndex] = 0;
        const int64_t idlePs = startPs - link.busyUntilPs;
        link.busyUntilPs = endPs + std::max<int64_t>(0, controlPs - idlePs);
    }
    else
    {
        link.busyUntilPs = endPs;
    }
    if (IsShared<F>())
    {
        m_shared[linkIndex] -=
            std::max<int64_t>(0, packet.cells - lane.credit) - std::max<int64_t>(0, -lane.credit);
    }
    lane.credit -= packet.cells;
    if ((link.flags & KEEPS_LITTLE) != 0)
    {
        const int64_t newsPs = 2 * int64_t{link.delayPs} +
                               UbSerialisePs(m_settings.controlBytes,
                                             m_rates[m_links[m_reverse[linkIndex]].rateClass]);
        Unacknowledged& kept = m_unacknowledged[linkIndex];
        kept.packets.emplace_back(endPs + newsPs, packet.wireBytes);
        kept.bytes += packet.wireBytes;
    }
    ++link.packets;
    link.bytes += packet.wireBytes;
    if ((link.flags & STALLED) != 0)
    {
        m_noCreditPs[linkIndex] += nowPs - m_stalledSincePs[linkIndex];
        link.flags &= static_cast<uint8_t>(~STALLED);
    }
    if (CreditReturn<F>() == UB_CREDIT_PIGGYBACK && (link.flags & CROSSES) == 0)
    {
        NoteDeparture<F>(linkIndex, startPs, m_lastPs);
    }
    ++m_packetHops;
    if (KeepsAccount<F>())
    {
        UbPacketAccount& account = m_accounts[index];
        account.waitedPs[std::min<uint32_t>(packet.hops, 3)] += waitedPs;
        account.propagatePs += link.delayPs;
    }
    ++packet.hops;
    if (m_observer != nullptr)
    {
        // by way of an event, since a source's port knows of it before its time
        m_queue.Push(startPs, (SENT << KIND_SHIFT) | linkIndex, SentRecord(packet));
    }

    const uint32_t inLink = packet.inLink;
    if (inLink == UB_NONE)
    {
        CountAtSource(m_sourceQueues[uint64_t{linkIndex} * NLanes<F>() + packet.lane],
                      packet.readyPs,
                      startPs,
                      packet.wireBytes);
    }
    else
    {
        if (Allocator<F>() == UB_ALLOCATOR_ISLIP)
        {
            InputOf<F>(packet).readPs = nowPs + ((serialisePs * m_inverseSpeedup + 0xffff) >> 16);
        }
        if (IsFifo<F>())
        {
            NextInLine(inLink, packet.lane, nowPs);
        }
        if (Allocator<F>() != UB_ALLOCATOR_OUTPUT_QUEUED)
        {
            // the buffer is free when the tail has left; a copy for retries is kept elsewhere
            ReturnCredit<F>(inLink,
                            LaneOf<F>(inLink, packet.lane),
                            packet.cells,
                            nowPs + serialisePs,
                            nowPs);
        }
    }
    if (link.dstSwitch != UB_NONE)
    {
        packet.next = UB_NONE;
        packet.inLink = linkIndex;
        packet.atSwitch = link.dstSwitch;
        packet.atInput = link.dstInput;
        if (KeepsAccount<F>())
        {
            m_accounts[index].switchPs += m_forwardPs[link.dstSwitch];
        }
        const int64_t headPs = startPs + link.delayPs + m_forwardPs[link.dstSwitch];
        if (__builtin_expect((link.flags & CROSSES) != 0, false))
        {
            packet.readyPs = headPs;
            m_leaving[m_across[linkIndex]].packets.push_back(packet);
            Free(index);
            return;
        }
        m_queue.Push(headPs, (HEAD << KIND_SHIFT) | linkIndex, index);
        return;
    }
    // the endpoint takes the packet at the rate of the link, or of its memory
    const int64_t headPs = startPs + link.delayPs;
    int64_t tailPs = endPs + link.delayPs;
    if ((link.flags & IS_SLOW_SINK) != 0 && (packet.bits & UB_PACKET_WRITES) != 0)
    {
        Sink& sink = m_sinks[link.sink];
        sink.freePs = std::max(sink.freePs, headPs) +
                      std::llround(static_cast<double>(serialisePs) / sink.share);
        tailPs = std::max(tailPs, sink.freePs);
    }
    ReturnCredit<F>(linkIndex, lane, packet.cells, tailPs, nowPs);
    HandOver(index, tailPs, headPs, false);
    if (m_observer != nullptr)
    {
        m_queue.Push(tailPs, (DELIVER << KIND_SHIFT) | linkIndex, index);
        return;
    }
    Free(index);
}

void
UbPlane::HandOver(uint32_t index, int64_t tailPs, int64_t headPs, bool isLost)
{
    const Packet& packet = m_packets[index];
    m_outbox.packets.push_back({tailPs,
                                headPs,
                                packet.waitedPs,
                                packet.flow,
                                packet.tag,
                                packet.payloadBytes,
                                packet.hops,
                                static_cast<uint8_t>(packet.bits & ~OWN_BITS),
                                packet.hint,
                                isLost});
    if (m_settings.keepsAccount)
    {
        CloseAccount(index, tailPs);
    }
}

void
UbPlane::CloseAccount(uint32_t index, int64_t tailPs)
{
    UbPacketAccount& account = m_accounts[index];
    int64_t otherPs = account.propagatePs + account.switchPs;
    for (const int64_t waitedPs : account.waitedPs)
    {
        otherPs += waitedPs;
    }
    account.serialisePs += tailPs - otherPs;
    m_outbox.accounts.push_back(account);
}

template <UbFeatures F>
void
UbPlane::EnterAs(Crossing& crossing, int64_t nowPs)
{
    // Whatever was due before this time has been found by now: credits on packets and in blocks
    // come later than the cable is long, and parts do not go apart so far.
    const int64_t beforePs = nowPs - 1;
    for (const CrossingCredit& credit : crossing.credits)
    {
        NoteCredit<F>(credit.lane / NLanes<F>(),
                      m_lanes[credit.lane],
                      credit.cells,
                      credit.freePs,
                      beforePs);
    }
    crossing.credits.clear();
    for (const Packet& packet : crossing.packets)
    {
        const uint32_t linkIndex = packet.inLink;
        const int64_t headPs = packet.readyPs;
        if (CreditReturn<F>() == UB_CREDIT_PIGGYBACK)
        {
            NoteDeparture<F>(linkIndex,
                             headPs - m_forwardPs[packet.atSwitch] - m_links[linkIndex].delayPs,
                             beforePs);
        }
        const uint32_t index = Allocate();
        m_packets[index] = packet;
        m_queue.Push(headPs, (HEAD << KIND_SHIFT) | linkIndex, index);
    }
    crossing.packets.clear();
}

template <UbFeatures F>
void
UbPlane::WakeAwaiting(uint32_t link, int64_t nowPs)
{
    const uint32_t other = m_reverse[link];
    bool isAwaited = false;
    for (uint32_t l = 0; l < NLanes<F>(); ++l)
    {
        const Lane& lane = LaneOf<F>(other, l);
        if (lane.needsCredit || (IsShared<F>() && (m_links[other].flags & STALLED) != 0))
        {
            isAwaited = true;
            // what has arrived by now has woken the link before
            const int64_t nextPs = NextCreditPs<F>(other, lane);
            if (nextPs > nowPs && nextPs != UB_NEVER)
            {
                Wake<F>(other, std::max(nextPs, m_links[other].busyUntilPs));
            }
        }
    }
    if (!isAwaited)
    {
        m_links[link].flags &= static_cast<uint8_t>(~AWAITED);
    }
}

void
UbPlane::NextInLine(uint32_t link, uint32_t lane, int64_t nowPs)
{
    const uint64_t line = uint64_t{link} * m_nLanes + lane;
    Queue& queue = m_inLine[line];
    if (queue.head == UB_NONE)
    {
        m_lineBusy[line] = 0;
        return;
    }
    const uint32_t index = queue.head;
    queue.head = m_packets[index].next;
    m_packets[index].next = UB_NONE;
    m_packets[index].bits |= IN_LINE;
    m_queue.Push(nowPs, (HEAD << KIND_SHIFT) | link, index);
}

bool
UbPlane::IsFirstInLine(uint32_t index, int64_t nowPs)
{
    Packet& packet = m_packets[index];
    if ((packet.bits & IN_LINE) != 0)
    {
        return true; // its turn has come
    }
    const uint64_t line = uint64_t{packet.inLink} * m_nLanes + packet.lane;
    if (m_lineBusy[line] == 0)
    {
        m_lineBusy[line] = 1;
        return true;
    }
    packet.readyPs = nowPs;
    packet.next = UB_NONE;
    Queue& queue = m_inLine[line];
    if (queue.head == UB_NONE)
    {
        queue.head = index;
    }
    else
    {
        m_packets[queue.tail].next = index;
    }
    queue.tail = index;
    return false;
}

UbPlane::Watch&
UbPlane::WatchLink(uint32_t link)
{
    const auto [found, isNew] = m_watches.try_emplace(link);
    if (isNew)
    {
        m_links[link].flags |= WATCHED;
        found->second.states.push_back({0, m_rates[m_links[link].rateClass], 0.0});
    }
    return found->second;
}

void
UbPlane::ScheduleLink(int64_t timePs, uint32_t fabricLink, uint64_t bytesPerS, double bitErrorRate)
{
    const uint32_t link = m_localLink[fabricLink];
    WatchLink(link).states.push_back({timePs, bytesPerS, bitErrorRate});
    m_mayBreak = m_mayBreak || bitErrorRate > 0;
    Change change;
    change.timePs = timePs;
    change.link = link;
    Schedule(std::move(change));
}

void
UbPlane::ScheduleLoss(int64_t timePs, uint32_t node, bool isDead)
{
    if (m_switchOf[node] == UB_NONE)
    {
        return; // endpoints hold nothing here, and switches of other planes are none of ours
    }
    Change change;
    change.timePs = timePs;
    change.chip = m_switchOf[node];
    change.isDead = isDead;
    Schedule(std::move(change));
}

void
UbPlane::PrepareRoutes(const UbFabricArrays& arrays)
{
    m_comingRoutes.push_back(MakeRoutes(arrays));
}

void
UbPlane::UseRoutes(int64_t nowPs)
{
    // classes and slots get new numbers, and the packets under way must know their own
    std::vector<std::vector<uint32_t>> endpoints(m_routes.nClasses);
    for (uint32_t node = 0; node < m_routes.ends.size(); ++node)
    {
        if (m_routes.ends[node].endpointClass >= 0)
        {
            auto& slots = endpoints[m_routes.ends[node].endpointClass];
            const auto slot = static_cast<size_t>(m_routes.ends[node].slot);
            slots.resize(std::max(slots.size(), slot + 1), UB_NONE);
            slots[slot] = node;
        }
    }
    std::vector<bool> isFree(m_packets.size(), false);
    for (const uint32_t index : m_freePackets)
    {
        isFree[index] = true;
    }
    Take(std::move(m_comingRoutes.front()));
    m_comingRoutes.pop_front();
    for (uint32_t index = 0; index < m_packets.size(); ++index)
    {
        Packet& packet = m_packets[index];
        if (!isFree[index] && packet.dstClass < endpoints.size())
        {
            SetDestination(packet, endpoints[packet.dstClass][packet.dstSlot]);
        }
        else
        {
            packet.dstClass = m_routes.nClasses; // cut off, as before
        }
    }
    ResetPolicy(static_cast<uint32_t>(m_routes.groups.size()));
    Reroute(nowPs);
}

void
UbPlane::Schedule(Change&& change)
{
    m_queue.Push(change.timePs, CHANGE << KIND_SHIFT, static_cast<uint32_t>(m_changes.size()));
    m_changes.push_back(std::move(change));
}

void
UbPlane::Apply(uint32_t index, int64_t nowPs)
{
    Change& change = m_changes[index];
    if (change.link != UB_NONE)
    {
        Watch& watch = m_watches.at(change.link);
        ++watch.present;
        const uint64_t rate = watch.states[watch.present].bytesPerS;
        Link& link = m_links[change.link];
        if (rate == 0)
        {
            link.flags |= DOWN;
        }
        else
        {
            link.flags &= static_cast<uint8_t>(~DOWN);
            link.rateClass = RateClass(rate);
            watch.retrains = 0;
        }
        if (m_observer != nullptr)
        {
            m_observer->LinkChanged(nowPs, m_linkNumber[change.link], rate);
        }
        if (link.nWaiting > 0)
        {
            Wake<UB_ANY>(change.link, std::max(nowPs, link.busyUntilPs));
        }
    }
    if (change.chip != UB_NONE)
    {
        Switch& chip = m_switches[change.chip];
        m_nDead += (change.isDead ? 1 : 0) - (chip.isDead ? 1 : 0);
        chip.isDead = change.isDead;
        if (chip.isDead)
        {
            for (const uint32_t link : chip.outputs)
            {
                for (const uint32_t packet : Drain(link))
                {
                    Lose(packet, nowPs);
                }
            }
        }
    }
}

std::vector<uint32_t>
UbPlane::Drain(uint32_t linkIndex)
{
    std::vector<uint32_t> packets;
    Link& link = m_links[linkIndex];
    for (uint32_t l = 0; l < m_nLanes; ++l)
    {
        Lane& lane = LaneOf<UB_ANY>(linkIndex, l);
        Waiting& waiting = WaitingOf<UB_ANY>(linkIndex, l);
        for (uint32_t input = 0; lane.nWaiting > 0 && input < link.nInputs; ++input)
        {
            if ((WordsOf(waiting, link.nInputs)[input / 64] >> (input % 64) & 1) == 0)
            {
                continue;
            }
            const uint32_t place = PlaceOf(waiting, link.nInputs, input);
            for (uint32_t index = QueuesOf(waiting)[place].head; index != UB_NONE;
                 index = m_packets[index].next)
            {
                packets.push_back(index);
            }
            CloseQueue(waiting, link.nInputs, input, place);
        }
        lane.nWaiting = 0;
        lane.waitingBytes = 0;
        lane.needsCredit = false;
    }
    link.nWaiting = 0;
    if ((link.flags & STALLED) != 0)
    {
        m_noCreditPs[linkIndex] += std::max<int64_t>(0, m_lastPs - m_stalledSincePs[linkIndex]);
        link.flags &= static_cast<uint8_t>(~STALLED);
    }
    return packets;
}

void
UbPlane::Reroute(int64_t nowPs)
{
    for (uint32_t link = 0; link < m_links.size(); ++link)
    {
        if ((m_links[link].flags & DOWN) == 0 || m_links[link].nWaiting == 0)
        {
            continue;
        }
        for (const uint32_t index : Drain(link))
        {
            Packet& packet = m_packets[index];
            if (packet.inLink != UB_NONE)
            {
                // it stays where it is in its buffer and asks for the way again
                const int64_t waitedPs = nowPs - packet.readyPs;
                packet.waitedPs += waitedPs;
                if (m_settings.keepsAccount)
                {
                    m_accounts[index].waitedPs[std::min<uint32_t>(packet.hops, 3)] += waitedPs;
                }
                packet.bits |= REROUTED;
                packet.bits |= m_settings.isFifo ? IN_LINE : 0;
                packet.readyPs = nowPs;
                packet.next = UB_NONE;
                m_queue.Push(nowPs, (HEAD << KIND_SHIFT) | packet.inLink, index);
                continue;
            }
            const uint32_t out = WayOut(m_srcNode[link], packet, nowPs);
            if (out == UB_NONE || m_links[link].dstSwitch == UB_NONE)
            {
                Lose(index, nowPs);
                continue;
            }
            Enqueue<UB_ANY>(out, 0, index);
            Wake<UB_ANY>(out, std::max(nowPs, m_links[out].busyUntilPs));
        }
    }
}

void
UbPlane::Lose(uint32_t index, int64_t nowPs)
{
    Packet& packet = m_packets[index];
    if (packet.inLink != UB_NONE)
    {
        if (m_settings.allocator != UB_ALLOCATOR_OUTPUT_QUEUED)
        {
            ReturnCredit<UB_ANY>(packet.inLink,
                                 LaneOf<UB_ANY>(packet.inLink, packet.lane),
                                 packet.cells,
                                 nowPs,
                                 nowPs);
        }
        if (m_settings.isFifo)
        {
            NextInLine(packet.inLink, packet.lane, nowPs);
        }
    }
    HandOver(index, nowPs, nowPs, true);
    ++m_packetsLost;
    Free(index);
}

bool
UbPlane::CanCross(uint32_t linkIndex, Packet& packet, int64_t nowPs)
{
    const Link& link = m_links[linkIndex];
    if ((link.flags & DOWN) != 0)
    {
        return false;
    }
    Watch& watch = m_watches.at(linkIndex);
    const auto index = static_cast<uint32_t>(&packet - m_packets.data());
    if (watch.plan.packet != index || watch.plan.askedPs != nowPs)
    {
        MakePlan(linkIndex, watch, packet, nowPs);
        watch.plan.packet = index;
    }
    if (watch.plan.startPs == UB_NEVER)
    {
        return false;
    }
    if (watch.present + 1 < watch.states.size())
    {
        const LinkState& next = watch.states[watch.present + 1];
        return next.bytesPerS != 0 ||
               watch.plan.startPs + UbSerialisePs(packet.wireBytes, watch.plan.bytesPerS) +
                       link.delayPs <=
                   next.fromPs;
    }
    return true;
}

void
UbPlane::MakePlan(uint32_t linkIndex, Watch& watch, Packet& packet, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    Plan& plan = watch.plan;
    plan = {};
    plan.askedPs = nowPs;
    plan.startPs = nowPs;
    plan.bytesPerS = m_rates[link.rateClass];
    const double bitErrorRate = watch.states[watch.present].bitErrorRate;
    if (bitErrorRate <= 0)
    {
        return;
    }
    const double spoilt = -std::expm1(8.0 * packet.wireBytes * std::log1p(-bitErrorRate));
    const int64_t newsPs =
        2 * int64_t{link.delayPs} +
        UbSerialisePs(m_settings.controlBytes, m_rates[m_links[m_reverse[linkIndex]].rateClass]);
    uint32_t tries = 0;
    while (static_cast<double>(
               UbMix(m_seed ^ UbMix((uint64_t{linkIndex} << 40) ^ (watch.draws + plan.draws++))) >>
               11) *
               0x1p-53 <
           spoilt)
    {
        // Go-back-N: the far end drops what follows and asks again from here. What would have
        // been sent in the meantime would be sent twice, so the link may as well keep it.
        plan.startPs += UbSerialisePs(packet.wireBytes, plan.bytesPerS) + newsPs;
        plan.spoiltPs.push_back(plan.startPs);
        if (++tries <= m_settings.retryLimit)
        {
            continue;
        }
        tries = 0;
        plan.startPs += m_settings.retrainPs;
        ++plan.retrains;
        if (watch.retrains + plan.retrains > m_settings.retrainLimit)
        {
            // given up: the link is down, and whoever computes routes is told
            link.flags |= DOWN;
            m_broken.push_back({m_linkNumber[linkIndex], plan.startPs});
            watch.retries += plan.spoiltPs.size();
            watch.draws += plan.draws;
            plan.startPs = UB_NEVER;
            return;
        }
        plan.bytesPerS = std::max<uint64_t>(1, plan.bytesPerS / 2); // half of the lanes are left
    }
}

int64_t
UbPlane::StartWatched(uint32_t linkIndex, Packet& packet, int64_t nowPs)
{
    Watch& watch = m_watches.at(linkIndex);
    const auto index = static_cast<uint32_t>(&packet - m_packets.data());
    if (watch.plan.packet != index || watch.plan.askedPs != nowPs)
    {
        MakePlan(linkIndex, watch, packet, nowPs);
    }
    Link& link = m_links[linkIndex];
    watch.draws += watch.plan.draws;
    watch.retries += watch.plan.spoiltPs.size();
    watch.retrains += watch.plan.retrains;
    if (watch.plan.retrains > 0)
    {
        link.rateClass = RateClass(watch.plan.bytesPerS);
        if (m_observer != nullptr)
        {
            m_observer->LinkChanged(nowPs, m_linkNumber[linkIndex], watch.plan.bytesPerS);
        }
    }
    if (m_observer != nullptr)
    {
        for (const int64_t timePs : watch.plan.spoiltPs)
        {
            m_queue.Push(timePs, (RETRIED << KIND_SHIFT) | linkIndex, SentRecord(packet));
        }
    }
    watch.plan.packet = UB_NONE;
    return watch.plan.startPs;
}

void
UbPlane::ReadStats(UbLinkStats* stats) const
{
    for (uint32_t i = 0; i < m_links.size(); ++i)
    {
        if (!IsOwn(i))
        {
            continue;
        }
        UbLinkStats& out = stats[m_linkNumber[i]];
        out.retries = 0;
        out.packets = m_links[i].packets;
        out.bytes = m_links[i].bytes;
        out.busyPs = UbSerialisePs(m_links[i].bytes, m_rates[m_links[i].rateClass]);
        out.noCreditPs = m_noCreditPs[i];
        out.maxQueueBytes = 0;
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            const size_t lane = i * m_nLanes + l;
            out.maxQueueBytes += m_lanes[lane].maxWaitingBytes + m_sourceQueues[lane].maxBytes;
        }
        const auto watch = m_watches.find(i);
        if (watch != m_watches.end())
        {
            out.retries = watch->second.retries;
            out.busyPs = watch->second.busyPs; // its rate may have changed
        }
    }
}

void
UbPlane::Sample(uint64_t* bytes, uint64_t* waitingBytes) const
{
    for (uint32_t i = 0; i < m_links.size(); ++i)
    {
        if (!IsOwn(i))
        {
            continue;
        }
        bytes[m_linkNumber[i]] = m_links[i].bytes;
        uint64_t waiting = 0;
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            waiting += m_lanes[i * m_nLanes + l].waitingBytes;
        }
        waitingBytes[m_linkNumber[i]] = waiting;
    }
}

void
UbPlane::ReadStalled(std::vector<uint32_t>& links) const
{
    for (size_t i = 0; i < m_links.size(); ++i)
    {
        if (m_links[i].nWaiting > 0)
        {
            links.push_back(m_linkNumber[i]);
        }
    }
}

std::string
UbPlane::Leftover() const
{
    std::ostringstream text;
    if (m_packetsInside != 0)
    {
        text << m_packetsInside << " packets are still inside";
        std::vector<uint32_t> stalled;
        ReadStalled(stalled);
        if (!stalled.empty())
        {
            text << "; first stalled link " << stalled[0] << " with "
                 << m_links[m_localLink[stalled[0]]].nWaiting << " packets";
        }
        return text.str();
    }
    for (uint32_t i = 0; i < m_links.size(); ++i)
    {
        for (uint32_t l = 0; IsOwn(i) && l < m_nLanes; ++l)
        {
            const Lane& lane = m_lanes[uint64_t{i} * m_nLanes + l];
            const int64_t full = m_settings.isShared ? m_settings.laneFloorCells : m_capacity[i];
            int64_t credit = lane.credit + lane.rest;
            for (uint32_t k = 0; k < lane.ringCount; ++k)
            {
                credit += lane.ring[(lane.ringHead + k) & lane.RingMask()].cells;
            }
            if (credit != full || lane.nWaiting != 0 || lane.waitingBytes != 0)
            {
                text << "link " << m_linkNumber[i] << " lane " << l << " has " << credit << " of "
                     << full << " cells of credit and " << lane.nWaiting << " packets waiting";
                return text.str();
            }
        }
    }
    return "";
}

// What the loop calls, compiled for each set of mechanisms.
#define UB_INSTANTIATE(F)                                                                          \
    template void UbPlane::InjectAs<F>(const UbInjection&);                                        \
    template void UbPlane::ReturnCredit<F>(uint32_t, Lane&, uint32_t, int64_t, int64_t);           \
    template void UbPlane::EnterAs<F>(Crossing&, int64_t);                                         \
    template void UbPlane::CollectCredits<F>(uint32_t, Lane&, int64_t);                            \
    template bool UbPlane::HasShared<F>(uint32_t, const Lane&, uint32_t, int64_t);                 \
    template void UbPlane::Enqueue<F>(uint32_t, uint32_t, uint32_t);                               \
    template void UbPlane::Serve<F>(uint32_t, int64_t);                                            \
    template void UbPlane::Match<F>(uint32_t, int64_t);                                            \
    template void UbPlane::Transmit<F>(uint32_t, uint32_t, int64_t)

UB_INSTANTIATE(UB_PLAIN);
UB_INSTANTIATE(UB_USUAL);
UB_INSTANTIATE(UB_ANY);

#undef UB_INSTANTIATE

} // namespace ns3
