// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane.h"

#include <algorithm>
#include <sstream>
#include <unordered_map>

namespace ns3
{

namespace
{

/// Rate class of a packet that was on no link yet.
constexpr uint16_t NO_RATE = 0xffff;

/// Length of a ring of credits at first: one cache line holds it.
constexpr uint32_t FIRST_RING = 4;

/// Events that a bucket should hold: few enough to sort in a moment.
constexpr double EVENTS_PER_BUCKET = 8.0;

} // namespace

UbPlane::UbPlane(const UbFabricArrays& arrays, uint32_t plane, uint32_t nLanes, uint64_t seed)
    : m_nLanes(nLanes),
      m_seed(UbMix(seed ^ (uint64_t{plane} << 32))),
      m_directLocal(arrays.nLinks, UB_NONE)
{
    const uint64_t row = uint64_t{plane} * arrays.nNodes;
    m_endpointClass.assign(arrays.endpointClass + row, arrays.endpointClass + row + arrays.nNodes);
    m_endpointSlot.assign(arrays.endpointSlot + row, arrays.endpointSlot + row + arrays.nNodes);
    m_endpointOut.assign(arrays.endpointOut + row, arrays.endpointOut + row + arrays.nNodes);

    // links of the plane keep their order, so that numbers say the same in every run
    std::vector<uint32_t> nIn(arrays.nNodes, 0);
    std::vector<uint32_t> switchOf(arrays.nNodes, UB_NONE);
    std::unordered_map<uint64_t, uint16_t> rateClass;
    std::vector<uint32_t> local(arrays.nLinks, UB_NONE);
    for (uint32_t number = 0; number < arrays.nLinks; ++number)
    {
        if (arrays.linkPlane[number] != plane)
        {
            continue;
        }
        const uint32_t dst = arrays.linkDst[number];
        local[number] = static_cast<uint32_t>(m_links.size());
        m_linkNumber.push_back(number);
        m_capacity.push_back(arrays.nodeBufferBytes[dst]);
        Link link;
        const auto [found, isNew] = rateClass.try_emplace(arrays.linkBytesPerS[number],
                                                          static_cast<uint16_t>(m_rates.size()));
        if (isNew)
        {
            m_rates.push_back(arrays.linkBytesPerS[number]);
        }
        link.rateClass = found->second;
        if (arrays.nodeIsEndpoint[dst] == 0)
        {
            if (switchOf[dst] == UB_NONE)
            {
                switchOf[dst] = static_cast<uint32_t>(m_switches.size());
                m_switches.push_back({0, arrays.nodeForwardLatencyPs[dst]});
            }
            link.dstSwitch = switchOf[dst];
            link.dstInput = static_cast<uint16_t>(nIn[dst]++);
        }
        else
        {
            m_directLocal[number] = local[number]; // of use only if it is a direct link
        }
        m_links.push_back(link);
    }
    const auto nLinks = static_cast<uint32_t>(m_links.size());
    m_noCreditPs.assign(nLinks, 0);
    m_lanes.resize(uint64_t{nLinks} * nLanes);
    m_sourceQueues.resize(m_lanes.size());
    m_firstRings.resize(m_lanes.size() * FIRST_RING);

    // queues: an output has one for each lane and input of its node
    uint64_t nQueues = 0;
    uint64_t nWords = 0;
    double eventsPerPs = 0;
    for (uint32_t i = 0; i < nLinks; ++i)
    {
        Link& link = m_links[i];
        const uint32_t src = arrays.linkSrc[m_linkNumber[i]];
        const uint32_t nInputs = arrays.nodeIsEndpoint[src] != 0 ? 1 : nIn[src];
        link.nInputs = static_cast<uint16_t>(nInputs);
        for (uint32_t l = 0; l < nLanes; ++l)
        {
            Lane& lane = m_lanes[uint64_t{i} * nLanes + l];
            lane.credit = m_capacity[i];
            lane.delayPs = arrays.linkDelayPs[m_linkNumber[i]];
            lane.ring = &m_firstRings[(uint64_t{i} * nLanes + l) * FIRST_RING];
            lane.ringMask = FIRST_RING - 1;
            lane.firstQueue = static_cast<uint32_t>(nQueues);
            lane.firstWord = static_cast<uint32_t>(nWords);
            nQueues += nInputs;
            nWords += (nInputs + 63) / 64;
        }
        // a busy link has about two events for each packet of some kilobytes
        eventsPerPs +=
            2.0 /
            static_cast<double>(std::max<int64_t>(UbSerialisePs(4096, m_rates[link.rateClass]), 1));
    }
    m_queues.resize(nQueues);
    m_words.assign(nWords, 0);
    uint32_t shift = 6;
    while (shift < 20 &&
           eventsPerPs * static_cast<double>(uint64_t{2} << shift) < EVENTS_PER_BUCKET)
    {
        ++shift;
    }
    m_queue.SetWidth(shift);

    // groups of this plane, renumbered
    std::vector<int32_t> groupOf(arrays.nGroups, -1);
    m_groupStart.push_back(0);
    for (uint32_t group = 0; group < arrays.nGroups; ++group)
    {
        const uint32_t begin = arrays.groupStart[group];
        const uint32_t end = arrays.groupStart[group + 1];
        if (begin == end || local[arrays.groupLink[begin]] == UB_NONE)
        {
            continue;
        }
        groupOf[group] = static_cast<int32_t>(m_groupStart.size() - 1);
        for (uint32_t at = begin; at < end; ++at)
        {
            m_groupLink.push_back(local[arrays.groupLink[at]]);
        }
        m_groupStart.push_back(static_cast<uint32_t>(m_groupLink.size()));
    }

    // rows of this plane's switches, and of its endpoints with several ways out
    const uint32_t nClasses = arrays.planeNClasses[plane];
    std::unordered_map<int32_t, int32_t> localBase;
    auto copyRow = [&](int64_t from) {
        const uint64_t at = m_table.size();
        for (uint32_t c = 0; c < nClasses; ++c)
        {
            int32_t entry = arrays.table[from + c];
            if (entry >= 0)
            {
                entry = groupOf[entry];
            }
            else if (entry <= -2)
            {
                const auto [found, isNew] =
                    localBase.try_emplace(entry, static_cast<int32_t>(m_local.size()));
                if (isNew)
                {
                    // as many entries as the class has endpoints
                    for (uint32_t node = 0; node < arrays.nNodes; ++node)
                    {
                        if (m_endpointClass[node] == static_cast<int32_t>(c))
                        {
                            const uint64_t to = uint64_t(found->second) + m_endpointSlot[node];
                            if (m_local.size() <= to)
                            {
                                m_local.resize(to + 1, -1);
                            }
                            m_local[to] =
                                groupOf[arrays.local[-(entry + 2) + m_endpointSlot[node]]];
                        }
                    }
                }
                entry = -(found->second + 2);
            }
            m_table.push_back(entry);
        }
        return at;
    };
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        if (switchOf[node] != UB_NONE)
        {
            m_switches[switchOf[node]].row = copyRow(arrays.switchRow[node]);
        }
        else if (arrays.nodeIsEndpoint[node] && m_endpointOut[node] >= 0)
        {
            m_endpointOut[node] = static_cast<int64_t>(copyRow(m_endpointOut[node]));
        }
        else if (arrays.nodeIsEndpoint[node] && m_endpointOut[node] <= -2)
        {
            m_endpointOut[node] = -(groupOf[-(m_endpointOut[node] + 2)] + 2);
        }
    }
}

uint32_t
UbPlane::Allocate()
{
    ++m_packetsInside;
    if (m_freePacket == UB_NONE)
    {
        m_packets.emplace_back();
        return static_cast<uint32_t>(m_packets.size() - 1);
    }
    const uint32_t index = m_freePacket;
    m_freePacket = m_packets[index].next;
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
UbPlane::Sent(uint32_t link, uint32_t record, int64_t nowPs)
{
    const auto [flow, bytes] = m_sent[record];
    m_freeSent.push_back(record);
    if (m_observer != nullptr)
    {
        m_observer->PacketSent(nowPs, m_linkNumber[link], flow, bytes);
    }
}

void
UbPlane::Inject(const UbInjection& injection)
{
    const uint32_t index = Allocate();
    Packet& packet = m_packets[index];
    packet.readyPs = injection.readyPs;
    packet.waitedPs = 0;
    packet.next = UB_NONE;
    packet.flow = injection.flow;
    packet.tag = injection.tag;
    packet.dstClass = static_cast<uint32_t>(m_endpointClass[injection.dstEndpoint]);
    packet.dstSlot = static_cast<uint16_t>(m_endpointSlot[injection.dstEndpoint]);
    packet.inLink = UB_NONE;
    packet.wireBytes = static_cast<uint16_t>(injection.wireBytes);
    packet.payloadBytes = static_cast<uint16_t>(injection.payloadBytes);
    packet.serialisePs = 0;
    packet.hash =
        injection.ordered ? static_cast<uint32_t>(injection.flowHash) : PathHash(injection);
    packet.rateClass = NO_RATE;
    packet.lane = injection.lane;
    packet.hops = 0;
    packet.bits = static_cast<uint8_t>(injection.congestion | (injection.ordered ? ORDERED : 0));
    packet.hint = injection.hint;

    uint32_t link;
    if (injection.directLink != UB_NONE)
    {
        link = m_directLocal[injection.directLink];
    }
    else
    {
        const int64_t out = m_endpointOut[injection.srcEndpoint];
        uint32_t group;
        if (out <= -2)
        {
            group = static_cast<uint32_t>(-(out + 2));
        }
        else
        {
            const int32_t entry = m_table[out + packet.dstClass];
            group =
                static_cast<uint32_t>(entry >= 0 ? entry : m_local[-(entry + 2) + packet.dstSlot]);
        }
        link = m_groupStart[group + 1] - m_groupStart[group] == 1 ? m_groupLink[m_groupStart[group]]
                                                                  : ChooseAtSource(group, packet);
    }
    // Nothing but this call puts packets into a source's port, and they leave in order: with one
    // lane and enough credit it is known now when the packet will go, without an event.
    Lane& lane = m_lanes[uint64_t{link} * m_nLanes + packet.lane];
    const int64_t startPs = std::max(injection.readyPs, m_links[link].busyUntilPs);
    if (m_links[link].nWaiting == 0 && (m_nLanes == 1 || startPs == injection.readyPs) &&
        HasCredit(lane, packet.wireBytes, startPs))
    {
        m_links[link].lastLane = packet.lane;
        Transmit(link, index, startPs);
        return;
    }
    const bool first = lane.nWaiting == 0;
    Enqueue(link, 0, index);
    if (first)
    {
        Wake(link, startPs);
    }
}

void
UbPlane::Enqueue(uint32_t linkIndex, uint32_t input, uint32_t index)
{
    Link& link = m_links[linkIndex];
    Packet& packet = m_packets[index];
    const uint32_t lane = packet.lane;
    Lane& state = m_lanes[uint64_t{linkIndex} * m_nLanes + lane];
    Queue& queue = m_queues[state.firstQueue + input];
    packet.next = UB_NONE;
    if (queue.head == UB_NONE)
    {
        queue.head = index;
        m_words[state.firstWord + input / 64] |= uint64_t{1} << (input % 64);
    }
    else
    {
        m_packets[queue.tail].next = index;
    }
    queue.tail = index;
    ++link.nWaiting;
    ++state.nWaiting;
    if (packet.inLink != UB_NONE)
    {
        state.waitingBytes += packet.wireBytes;
        state.maxWaitingBytes = std::max(state.maxWaitingBytes, state.waitingBytes);
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
UbPlane::CollectCredits(Lane& lane, int64_t nowPs)
{
    while (lane.ringCount > 0 && lane.ring[lane.ringHead].timePs <= nowPs)
    {
        lane.credit += lane.ring[lane.ringHead].bytes;
        lane.ringHead = (lane.ringHead + 1) & lane.ringMask;
        --lane.ringCount;
    }
}

void
UbPlane::GrowRing(Lane& lane)
{
    const uint32_t size = lane.ringMask + 1;
    auto ring = std::make_unique<Credit[]>(2 * size);
    for (uint32_t i = 0; i < size; ++i)
    {
        ring[i] = lane.ring[(lane.ringHead + i) & lane.ringMask];
    }
    lane.ring = ring.get();
    lane.ringHead = 0;
    lane.ringMask = 2 * size - 1;
    m_moreRings.push_back(std::move(ring));
}

void
UbPlane::ReturnCredit(uint32_t linkIndex,
                      Lane& lane,
                      uint32_t bytes,
                      int64_t arrivalPs,
                      int64_t nowPs)
{
    // take in what has come by now: the ring stays as short as the cable
    CollectCredits(lane, nowPs);
    if (lane.ringCount > lane.ringMask)
    {
        GrowRing(lane);
    }
    // packets leave a buffer through several outputs, so credits come nearly in order of time
    uint32_t at = lane.ringHead + lane.ringCount++;
    while (at != lane.ringHead && lane.ring[(at - 1) & lane.ringMask].timePs > arrivalPs)
    {
        lane.ring[at & lane.ringMask] = lane.ring[(at - 1) & lane.ringMask];
        --at;
    }
    lane.ring[at & lane.ringMask] = {arrivalPs, bytes};
    if (lane.needsCredit)
    {
        Wake(linkIndex, std::max(lane.ring[lane.ringHead].timePs, m_links[linkIndex].busyUntilPs));
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

void
UbPlane::Serve(uint32_t linkIndex, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    if (link.busyUntilPs > nowPs)
    {
        Wake(linkIndex, link.busyUntilPs);
        return;
    }
    const uint32_t words = (link.nInputs + 63) / 64;
    int64_t wakePs = UB_NEVER;
    bool stalled = false;
    for (uint32_t step = 1; step <= m_nLanes; ++step)
    {
        const uint32_t laneIndex = (link.lastLane + step) % m_nLanes;
        Lane& lane = m_lanes[uint64_t{linkIndex} * m_nLanes + laneIndex];
        if (lane.nWaiting == 0)
        {
            continue;
        }
        // round robin: the next input, after the one served last, that has a packet ready
        uint64_t* bits = &m_words[lane.firstWord];
        uint32_t input =
            NextInput(bits, words, lane.lastInput + 1U < link.nInputs ? lane.lastInput + 1U : 0);
        const uint32_t first = input;
        bool isReady = true;
        while (m_packets[m_queues[lane.firstQueue + input].head].readyPs > nowPs)
        {
            // its tail still comes in on a slower link; others need not wait for that
            wakePs = std::min(wakePs, m_packets[m_queues[lane.firstQueue + input].head].readyPs);
            input = NextInput(bits, words, input + 1 < link.nInputs ? input + 1 : 0);
            if (input == first)
            {
                isReady = false;
                break;
            }
        }
        if (!isReady)
        {
            continue;
        }
        Queue& queue = m_queues[lane.firstQueue + input];
        const uint32_t index = queue.head;
        Packet& packet = m_packets[index];
        if (!HasCredit(lane, packet.wireBytes, nowPs))
        {
            stalled = true;
            lane.needsCredit = true;
            if (lane.ringCount > 0)
            {
                wakePs = std::min(wakePs, lane.ring[lane.ringHead].timePs);
            }
            continue;
        }
        lane.needsCredit = false;
        queue.head = packet.next;
        if (queue.head == UB_NONE)
        {
            bits[input / 64] &= ~(uint64_t{1} << (input % 64));
        }
        --link.nWaiting;
        --lane.nWaiting;
        lane.waitingBytes -= packet.inLink != UB_NONE ? packet.wireBytes : 0;
        lane.lastInput = static_cast<uint16_t>(input);
        link.lastLane = static_cast<uint8_t>(laneIndex);
        Transmit(linkIndex, index, nowPs);
        if (link.nWaiting > 0)
        {
            Wake(linkIndex, link.busyUntilPs);
        }
        return;
    }
    if (stalled && link.stalledSincePs < 0)
    {
        link.stalledSincePs = nowPs;
        if (m_observer != nullptr)
        {
            m_observer->CreditStall(nowPs, m_linkNumber[linkIndex]);
        }
    }
    if (wakePs != UB_NEVER)
    {
        Wake(linkIndex, wakePs);
    }
}

void
UbPlane::Transmit(uint32_t linkIndex, uint32_t index, int64_t nowPs)
{
    Link& link = m_links[linkIndex];
    Packet& packet = m_packets[index];
    Lane& lane = m_lanes[uint64_t{linkIndex} * m_nLanes + packet.lane];
    const int64_t serialisePs = SerialisePs(link, packet);
    const int64_t endPs = nowPs + serialisePs;
    packet.waitedPs += nowPs - packet.readyPs;
    link.busyUntilPs = endPs;
    lane.credit -= packet.wireBytes;
    ++link.packets;
    link.bytes += packet.wireBytes;
    if (link.stalledSincePs >= 0)
    {
        m_noCreditPs[linkIndex] += nowPs - link.stalledSincePs;
        link.stalledSincePs = -1;
    }
    ++m_packetHops;
    ++packet.hops;
    if (m_observer != nullptr)
    {
        // by way of an event, since a source's port knows of it before its time
        m_queue.Push(nowPs, (SENT << KIND_SHIFT) | linkIndex, SentRecord(packet));
    }

    const uint32_t inLink = packet.inLink;
    if (inLink != UB_NONE)
    {
        // the buffer is free when the tail has left; the news travels back over the cable
        Lane& inLane = m_lanes[uint64_t{inLink} * m_nLanes + packet.lane];
        ReturnCredit(inLink, inLane, packet.wireBytes, endPs + inLane.delayPs, nowPs);
    }
    else
    {
        CountAtSource(m_sourceQueues[uint64_t{linkIndex} * m_nLanes + packet.lane],
                      packet.readyPs,
                      nowPs,
                      packet.wireBytes);
    }
    if (link.dstSwitch != UB_NONE)
    {
        packet.inLink = linkIndex;
        packet.atSwitch = link.dstSwitch;
        packet.atInput = link.dstInput;
        m_queue.Push(nowPs + lane.delayPs + m_switches[link.dstSwitch].forwardLatencyPs,
                     (HEAD << KIND_SHIFT) | linkIndex,
                     index);
        return;
    }
    // the endpoint takes the packet at the rate of the link and needs no buffer for longer
    const int64_t tailPs = endPs + lane.delayPs;
    ReturnCredit(linkIndex, lane, packet.wireBytes, tailPs + lane.delayPs, nowPs);
    m_outbox.push_back({tailPs,
                        nowPs + lane.delayPs,
                        packet.waitedPs,
                        packet.flow,
                        packet.tag,
                        packet.payloadBytes,
                        packet.hops,
                        static_cast<uint8_t>(packet.bits & ~ORDERED),
                        packet.hint,
                        false});
    if (m_observer != nullptr)
    {
        m_queue.Push(tailPs, (DELIVER << KIND_SHIFT) | linkIndex, index);
        return;
    }
    Free(index);
}

void
UbPlane::ReadStats(UbLinkStats* stats) const
{
    for (size_t i = 0; i < m_links.size(); ++i)
    {
        UbLinkStats& out = stats[m_linkNumber[i]];
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
    }
}

std::string
UbPlane::Leftover() const
{
    std::ostringstream text;
    if (m_packetsInside != 0)
    {
        text << m_packetsInside << " packets are still inside";
        for (size_t i = 0; i < m_links.size(); ++i)
        {
            if (m_links[i].nWaiting > 0)
            {
                text << "; first stalled link " << m_linkNumber[i] << " with "
                     << m_links[i].nWaiting << " packets";
                break;
            }
        }
        return text.str();
    }
    for (size_t i = 0; i < m_links.size(); ++i)
    {
        for (uint32_t l = 0; l < m_nLanes; ++l)
        {
            const Lane& lane = m_lanes[i * m_nLanes + l];
            int64_t credit = lane.credit;
            for (uint32_t k = 0; k < lane.ringCount; ++k)
            {
                credit += lane.ring[(lane.ringHead + k) & lane.ringMask].bytes;
            }
            if (credit != m_capacity[i] || lane.nWaiting != 0 || lane.waitingBytes != 0)
            {
                text << "link " << m_linkNumber[i] << " lane " << l << " has " << credit << " of "
                     << m_capacity[i] << " bytes of credit and " << lane.nWaiting
                     << " packets waiting";
                return text.str();
            }
        }
    }
    return "";
}

} // namespace ns3
