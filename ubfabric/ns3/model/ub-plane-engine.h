// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_ENGINE_H
#define UB_PLANE_ENGINE_H

#include "ub-path-policy.h"
#include "ub-plane.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief The event loop of a plane, compiled for one path policy.
 * @tparam Policy See UbPathPolicy for the members it must have.
 * @tparam F Which mechanisms are compiled in.
 */
template <class Policy, UbFeatures F>
class UbPlaneEngine final : public UbPlane
{
  public:
    /**
     * @param [in] arrays The fabric.
     * @param [in] plane Which plane of it.
     * @param [in] settings How its links and switches work.
     * @param [in] part Which part of the plane.
     */
    UbPlaneEngine(const UbFabricArrays& arrays,
                  uint32_t plane,
                  const UbPlaneSettings& settings,
                  const UbPlanePart& part)
        : UbPlane(arrays, plane, settings, part),
          m_policy(static_cast<uint32_t>(m_routes.groups.size())),
          m_nGuessed(m_routes.groups.size(), 0)
    {
    }

    void Inject(const UbInjection& injection) override
    {
        InjectAs<F>(injection);
    }

    void Accept(UbInjections& injections) override
    {
        const size_t n = injections.size();
        for (size_t i = 0; i < n; ++i)
        {
            if (!m_isSmall)
            {
                for (const uint32_t step : {0U, 1U, 2U})
                {
                    const size_t at = i + (INJECTION_STEPS - step) * INJECTIONS_APART;
                    if (at < n)
                    {
                        PrefetchInjection(injections[at], step);
                    }
                }
            }
            InjectAs<F>(injections[i]);
        }
        injections.clear();
    }

    void Enter(Crossing& crossing, int64_t nowPs) override
    {
        EnterAs<F>(crossing, nowPs);
    }

    void RunBefore(int64_t limitPs) override
    {
        UbEventQueue::Event event;
        m_apart = m_queue.Size() < TOO_MANY_EVENTS ? EVENTS_APART : 2 * EVENTS_APART;
        const bool isBusy = m_queue.KeepReadyIfMany(MANY_EVENTS, (N_STEPS + 1) * m_apart);
        while (m_queue.PopBefore(limitPs, event))
        {
            ++m_eventCount;
            m_lastPs = event.timePs;
            if (isBusy)
            {
                LookAhead();
            }
            const uint32_t link = event.key & ((1U << KIND_SHIFT) - 1);
            switch (static_cast<EventKind>(event.key >> KIND_SHIFT))
            {
            case CHANGE:
                Apply(event.payload, event.timePs);
                break;
            case HEAD:
                Head(event.payload, event.timePs);
                break;
            case PORT:
                if (m_links[link].wakePs == event.timePs) // else an earlier look replaced this one
                {
                    m_links[link].wakePs = UB_NEVER;
                    if (m_links[link].nWaiting > 0)
                    {
                        Serve<F>(link, event.timePs);
                    }
                }
                break;
            case MATCH:
                GatherDue(event);
                Match<F>(link, event.timePs);
                break;
            case DELIVER:
                Deliver(link, event.payload, event.timePs);
                break;
            case SENT:
                Sent(link, event.payload, event.timePs, false);
                break;
            case RETRIED:
                Sent(link, event.payload, event.timePs, true);
                break;
            }
        }
    }

  private:
    /// The part of a policy that lives in a plane.
    using PlanePart = typename Policy::InPlane;

    /**
     * Find the outputs of a switch that can take a packet at an instant; each has an event.
     * @param [in] first The first of these events.
     */
    void GatherDue(const UbEventQueue::Event& first)
    {
        m_matching.clear();
        uint32_t index = first.payload;
        bool isMore = true;
        while (isMore)
        {
            Link& link = m_links[index];
            if (link.wakePs == first.timePs) // else an earlier look replaced this one
            {
                link.wakePs = UB_NEVER;
                if (link.busyUntilPs > first.timePs)
                {
                    Wake<F>(index, link.busyUntilPs);
                }
                else if (link.nWaiting > 0)
                {
                    m_matching.push_back({index, {}});
                }
            }
            isMore = m_queue.PopSame(first, index);
            m_eventCount += isMore ? 1 : 0;
        }
    }

    /**
     * Bring what events to come will touch into the cache while others are at work.
     *
     * What an event touches is found step by step, each step at what the one before has brought,
     * so the steps are taken some events apart.
     */
    void LookAhead()
    {
        const auto each = [&](uint32_t step, const auto& visit) {
            m_queue.LookAhead(m_seen[step],
                              (N_STEPS - step) * m_apart,
                              [&](const UbEventQueue::Event& event, uint64_t number) {
                                  visit(event, m_notes[number % N_NOTES]);
                              });
        };
        each(0, [&](const UbEventQueue::Event& event, uint32_t& /* note */) {
            const uint32_t link = event.key & ((1U << KIND_SHIFT) - 1);
            if (event.key >> KIND_SHIFT == HEAD)
            {
                UbPrefetch(&m_packets[event.payload]);
                PrefetchCredits(link);
                return;
            }
            if (event.key >> KIND_SHIFT == PORT)
            {
                PrefetchSource(link);
                return;
            }
            PrefetchLink(OutputOf(event));
        });
        each(1, [&](const UbEventQueue::Event& event, uint32_t& note) {
            if (event.key >> KIND_SHIFT == HEAD)
            {
                const Packet& packet = m_packets[event.payload];
                UbPrefetch(&m_routes.table[RowOf(packet.atSwitch) + packet.dstClass]);
                PrefetchRing(event.key & ((1U << KIND_SHIFT) - 1));
                return;
            }
            const uint32_t out = OutputOf(event);
            note = FirstWaiting(out);
            if (note != UB_NONE)
            {
                UbPrefetch(&m_packets[note]);
                PrefetchTimes(out);
                PrefetchSink(out);
                if (event.key >> KIND_SHIFT == PORT)
                {
                    PrefetchAtSource(out);
                }
            }
        });
        // A note is the packet that waits, then its input. Events that come in between shift
        // those behind them, so it may be the note of another event.
        each(2, [&](const UbEventQueue::Event& event, uint32_t& note) {
            if (event.key >> KIND_SHIFT == HEAD)
            {
                Packet& packet = m_packets[event.payload];
                if (packet.next != UB_NONE)
                {
                    return; // seen before, since others came in between
                }
                packet.next = Guess(packet);
                if (packet.next != UB_NONE)
                {
                    PrefetchPort(packet.next);
                }
            }
            else if (note < m_packets.size())
            {
                note = m_packets[note].inLink;
                if (note != UB_NONE)
                {
                    PrefetchCredits(note);
                }
            }
        });
        each(3, [&](const UbEventQueue::Event& event, uint32_t& note) {
            if (event.key >> KIND_SHIFT != HEAD)
            {
                if (note < m_links.size())
                {
                    PrefetchRing(note);
                }
                return;
            }
            const uint32_t out = m_packets[event.payload].next;
            if (out == UB_NONE)
            {
                return;
            }
            const Link& link = m_links[out];
            if (link.nWaiting > 0 || link.busyUntilPs > event.timePs)
            {
                UbPrefetch(&WaitingOf<F>(out, 0)); // it will have to wait
                return;
            }
            PrefetchDepartures(out);
            PrefetchSink(out);
        });
    }

    /**
     * @param [in] packet A packet that comes to a switch.
     * @return The link on which it will leave, most likely, or UB_NONE.
     */
    uint32_t Guess(const Packet& packet)
    {
        const int32_t way = WayOf(packet);
        if (way < 0)
        {
            return UB_NONE;
        }
        if ((way & ONE_LINK) != 0)
        {
            return way & ~ONE_LINK;
        }
        const Group& group = m_routes.groups[way];
        const uint32_t choice =
            m_policy.Guess(way, group.nLinks, SaltOf(group), packet.hash, m_nGuessed[way]++);
        return m_routes.LinkOf(group, choice);
    }

    /**
     * @param [in] group A group.
     * @return What makes its choices differ from those of other groups.
     */
    uint64_t SaltOf(const Group& group) const
    {
        return m_seed ^ (uint64_t{group.number} << 32);
    }

    /**
     * @param [in] event An event that is about an output.
     * @return The output.
     */
    static uint32_t OutputOf(const UbEventQueue::Event& event)
    {
        return event.key >> KIND_SHIFT == MATCH ? event.payload
                                                : event.key & ((1U << KIND_SHIFT) - 1);
    }

    /**
     * @param [in] out An output.
     * @return A packet that waits there and may be the next to leave, UB_NONE if there is none.
     */
    uint32_t FirstWaiting(uint32_t out)
    {
        const Link& link = m_links[out];
        Waiting& waiting = WaitingOf<F>(out, 0);
        if (link.nInputs > Waiting::N_NARROW || waiting.bits == 0)
        {
            return UB_NONE;
        }
        const uint32_t last = LaneOf<F>(out, 0).lastInput;
        const uint32_t input =
            NextInput(&waiting.bits, 1, last + 1U < link.nInputs ? last + 1U : 0);
        return QueuesOf(waiting)[PlaceOf(waiting, link.nInputs, input)].head;
    }

    /**
     * Bring what a packet to come will touch into the cache.
     * @param [in] injection The packet.
     * @param [in] step How far to go: the ends of its path, its port, what its port points at.
     */
    void PrefetchInjection(const UbInjection& injection, uint32_t step) const
    {
        if (step == 0)
        {
            UbPrefetch(&m_routes.ends[injection.srcEndpoint]);
            UbPrefetch(&m_routes.ends[injection.dstEndpoint]);
            return;
        }
        const int64_t way = -(m_routes.ends[injection.srcEndpoint].out + 2);
        if (injection.directLink != UB_NONE || way < ONE_LINK)
        {
            return;
        }
        const uint32_t link = static_cast<uint32_t>(way) & ~ONE_LINK;
        if (step == 1)
        {
            PrefetchSource(link);
            return;
        }
        PrefetchTimes(link);
        PrefetchAtSource(link);
    }

    /**
     * Bring into the cache what a packet touches that leaves its source.
     * @param [in] link A link that leaves an endpoint.
     */
    void PrefetchSource(uint32_t link) const
    {
        PrefetchLink(link);
        UbPrefetch(&m_sourceQueues[uint64_t{link} * NLanes<F>()]);
    }

    /**
     * Bring what waited at a source into the cache.
     * @param [in] link A link that leaves an endpoint, whose queue is in the cache.
     */
    void PrefetchAtSource(uint32_t link) const
    {
        const SourceQueue& queue = m_sourceQueues[uint64_t{link} * NLanes<F>()];
        UbPrefetch(queue.waiting.data() + queue.first);
        UbPrefetch(queue.waiting.data() + queue.waiting.size());
    }

    /**
     * @param [in] packet A packet at a switch.
     * @return The way by which it goes on, negative if there is none.
     */
    int32_t WayOf(const Packet& packet) const
    {
        const int32_t way = m_routes.table[RowOf(packet.atSwitch) + packet.dstClass];
        return way < -1 ? m_routes.local[-(way + 2) + packet.dstSlot] : way;
    }

    /**
     * A packet's head is ready to leave a switch.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     */
    void Head(uint32_t index, int64_t nowPs)
    {
        Packet& packet = At(index);
        const int32_t way = WayOf(packet);
        if (packet.next != UB_NONE) // LookAhead has guessed where the packet goes
        {
            packet.next = UB_NONE;
            if (way >= 0 && (way & ONE_LINK) == 0 && m_nGuessed[way] > 0)
            {
                --m_nGuessed[way];
            }
        }
        if (IsFifo<F>() && !IsFirstInLine(index, nowPs))
        {
            return;
        }
        if (Allocator<F>() == UB_ALLOCATOR_OUTPUT_QUEUED &&
            (packet.bits & REROUTED) == 0) // else it was out of its input's buffer before
        {
            ReturnCredit<F>(packet.inLink,
                            LaneOf<F>(packet.inLink, packet.lane),
                            packet.cells,
                            nowPs,
                            nowPs);
        }
        if (way < 0 || (m_nDead > 0 && m_switches[packet.atSwitch].isDead))
        {
            Lose(index, nowPs);
            return;
        }
        const uint32_t out = Choose(static_cast<uint32_t>(way), packet, nowPs);
        Link& link = m_links[out];
        UbPrefetch(&WaitingOf<F>(out, packet.lane)); // if it must wait
        if (GrantsWindows<F>() && (packet.bits & UB_CONGESTION_CAPABLE) != 0)
        {
            Grant(out, packet, nowPs);
        }
        if ((packet.bits & IN_LINE) == 0)
        {
            packet.readyPs = nowPs; // else it has waited since it came
        }
        packet.bits &= static_cast<uint8_t>(~(IN_LINE | REROUTED));
        if (packet.rateClass != link.rateClass)
        {
            // on a faster link the head must wait, or the tail would not be there in time
            const int64_t inPs = packet.serialisePs;
            packet.readyPs += std::max<int64_t>(0, inPs - SerialisePs(link, packet));
        }
        Lane& lane = LaneOf<F>(out, packet.lane);
        if (link.nWaiting == 0 && link.busyUntilPs <= nowPs && packet.readyPs <= nowPs &&
            (link.flags & (WATCHED | KEEPS_LITTLE)) == 0 &&
            (Allocator<F>() != UB_ALLOCATOR_ISLIP || InputOf<F>(packet).readPs <= nowPs) &&
            HasCredit<F>(out, lane, packet.cells, nowPs))
        {
            lane.lastInput = packet.atInput;
            link.lastLane = packet.lane;
            if (Arbitration<F>() == UB_LANES_DEFICIT)
            {
                m_deficit[uint64_t{out} * NLanes<F>() + packet.lane] = 0; // the lane is empty
            }
            Transmit<F>(out, index, nowPs);
            return;
        }
        const bool first = lane.nWaiting == 0;
        Enqueue<F>(out, packet.atInput, index);
        // whoever waits for credit is woken by the credit, whoever waits in line by the line
        if (first || !lane.needsCredit)
        {
            Wake<F>(out, std::max({nowPs, packet.readyPs, link.busyUntilPs}));
        }
    }

    /**
     * A packet's last byte is at its endpoint; only while somebody listens.
     * @param [in] link The last link.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     */
    void Deliver(uint32_t link, uint32_t index, int64_t nowPs)
    {
        Packet& packet = At(index);
        if (m_observer != nullptr)
        {
            m_observer->PacketDelivered(nowPs, FabricLink(link), packet.flow, packet.payloadBytes);
        }
        Free(index);
    }

    uint32_t PathHash(const UbInjection& injection) const override
    {
        return m_policy.Hash(injection);
    }

    uint32_t Choose(uint32_t way, const Packet& packet, int64_t nowPs) override
    {
        if ((way & ONE_LINK) != 0)
        {
            return way & ~ONE_LINK;
        }
        const Group& group = m_routes.groups[way];
        const uint64_t salt = SaltOf(group);
        if ((packet.bits & ORDERED) != 0)
        {
            return m_routes.LinkOf(group, UbReduce(UbMix(salt ^ packet.hash), group.nLinks));
        }
        if constexpr (PlanePart::LOOKS_AT_PORTS)
        {
            const auto backlogPs = [&](uint32_t choice) {
                return PortBacklogPs(m_routes.LinkOf(group, choice), packet, nowPs);
            };
            return m_routes.LinkOf(
                group,
                m_policy.Choose(way, group.nLinks, salt, packet.hash, backlogPs));
        }
        else
        {
            return m_routes.LinkOf(group, m_policy.Choose(way, group.nLinks, salt, packet.hash));
        }
    }

    void ResetPolicy(uint32_t nGroups) override
    {
        m_policy = PlanePart(nGroups);
        m_nGuessed.assign(nGroups, 0);
    }

    static constexpr uint32_t N_STEPS = 4;          //!< steps of LookAhead
    static constexpr uint32_t EVENTS_APART = 4;     //!< events from step to step, at least
    static constexpr uint32_t INJECTION_STEPS = 3;  //!< steps of PrefetchInjection
    static constexpr uint32_t INJECTIONS_APART = 3; //!< injections from step to step
    static constexpr uint32_t N_NOTES = 64;         //!< events between first and last step, or more
    static constexpr size_t FEW_LINKS = 1'000;      //!< links of planes that a core's cache holds
    static constexpr uint64_t MANY_EVENTS = 256;    //!< events that make looking ahead pay
    static constexpr uint64_t TOO_MANY_EVENTS = 16'384; //!< events of which nothing is near

    PlanePart m_policy;               //!< the policy
    std::vector<uint32_t> m_nGuessed; //!< by group: packets for which LookAhead has guessed
    const bool m_isSmall{m_links.size() <= FEW_LINKS}; //!< the plane is in the cache anyway
    uint32_t m_apart{EVENTS_APART};                    //!< events from step to step now
    std::array<uint64_t, N_STEPS> m_seen{};  //!< by step: events that it has been taken for
    std::array<uint32_t, N_NOTES> m_notes{}; //!< what steps leave to those after them, by event
};

/**
 * @ingroup ub-fabric
 * @brief The part of a path policy that is the same for all: what makes planes of it.
 * @tparam Self The policy.
 */
template <class Self>
class UbPathPolicyOf : public UbPathPolicy
{
  public:
    std::unique_ptr<UbPlane> MakePlane(const UbFabricArrays& arrays,
                                       uint32_t plane,
                                       const UbPlaneSettings& settings,
                                       const UbPlanePart& part) const override
    {
        switch (settings.Features())
        {
        case UB_PLAIN:
            return std::make_unique<UbPlaneEngine<Self, UB_PLAIN>>(arrays, plane, settings, part);
        case UB_USUAL:
            return std::make_unique<UbPlaneEngine<Self, UB_USUAL>>(arrays, plane, settings, part);
        case UB_ANY:
            break;
        }
        return std::make_unique<UbPlaneEngine<Self, UB_ANY>>(arrays, plane, settings, part);
    }

    bool LooksAtPorts() const override
    {
        return Self::InPlane::LOOKS_AT_PORTS;
    }
};

/**
 * @ingroup ub-fabric
 * @brief The in-plane part of policies that choose by a hash carried in the packet.
 */
struct UbHashedChoice
{
    /// Whether Choose wants to know what waits in the ports.
    static constexpr bool LOOKS_AT_PORTS = false;

    /// @param [in] nGroups Number of groups of the plane; a hash needs no state.
    explicit UbHashedChoice(uint32_t nGroups [[maybe_unused]])
    {
    }

    /**
     * @param [in] nLinks Number of links to choose from.
     * @param [in] salt Differs from group to group, or choices would follow each other.
     * @param [in] hash The packet's hash.
     * @return The choice.
     */
    uint32_t Choose(uint32_t /* group */, uint32_t nLinks, uint64_t salt, uint32_t hash) const
    {
        return UbReduce(UbMix(salt ^ hash), nLinks);
    }

    /**
     * @param [in] group The group.
     * @param [in] nLinks Number of links to choose from.
     * @param [in] salt Differs from group to group.
     * @param [in] hash The packet's hash.
     * @return What Choose chooses, whoever chooses before.
     */
    uint32_t Guess(uint32_t group,
                   uint32_t nLinks,
                   uint64_t salt,
                   uint32_t hash,
                   uint32_t /* nBefore */) const
    {
        return Choose(group, nLinks, salt, hash);
    }
};

} // namespace ns3

#endif // UB_PLANE_ENGINE_H
