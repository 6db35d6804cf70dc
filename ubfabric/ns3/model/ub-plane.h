// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_H
#define UB_PLANE_H

#include "ub-event-queue.h"
#include "ub-fabric-arrays.h"
#include "ub-huge-pages.h"
#include "ub-prefetch.h"
#include "ub-strided-array.h"

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ns3
{

/// No link, no packet, no task.
constexpr uint32_t UB_NONE = 0xffffffffU;

/// Bit of a flow number that marks a packet of a UbNetDevice instead of a flow.
constexpr uint32_t UB_DEVICE_FLOW = 0x80000000U;

/**
 * @ingroup ub-fabric
 * @brief Mix 64 bits so that each output bit depends on each input bit.
 *
 * The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the hash behind flow hashing
 * and seeded random choice, which need no state and so no order.
 *
 * @param [in] x Input.
 * @return Output.
 */
constexpr uint64_t
UbMix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/**
 * @ingroup ub-fabric
 * @brief Reduce a hash to a range, without division.
 * @param [in] hash The hash.
 * @param [in] n The number of choices.
 * @return A number from 0 to n - 1.
 */
constexpr uint32_t
UbReduce(uint64_t hash, uint32_t n)
{
    return static_cast<uint32_t>(((hash >> 32) * n) >> 32);
}

/**
 * @ingroup ub-fabric
 * @brief Time to put bytes on a wire.
 * @param [in] bytes The bytes.
 * @param [in] bytesPerS The rate; 0 takes no time.
 * @return Picoseconds, rounded to the nearest.
 */
constexpr int64_t
UbSerialisePs(uint64_t bytes, uint64_t bytesPerS)
{
    if (bytesPerS == 0)
    {
        return 0;
    }
    constexpr uint64_t psPerS = 1'000'000'000'000ULL;
    // 16 MB in one piece is the most that fits 64 bits; longer ones take whole seconds apart
    if (bytes < 16'000'000)
    {
        return static_cast<int64_t>((bytes * psPerS + bytesPerS / 2) / bytesPerS);
    }
    __extension__ using Wide = unsigned __int128;
    return static_cast<int64_t>((static_cast<Wide>(bytes) * psPerS + bytesPerS / 2) / bytesPerS);
}

/// How the news of free buffer space comes back to the start of a link.
enum UbCreditReturn : uint8_t
{
    UB_CREDIT_IDEAL = 0,     //!< by itself: it takes the delay of the cable and no bandwidth
    UB_CREDIT_CONTROL = 1,   //!< in a control block of its own on the reverse link
    UB_CREDIT_PIGGYBACK = 2, //!< in the header of the next packet on the reverse link
};

/// How the lanes of a port take turns.
enum UbLaneArbitration : uint8_t
{
    UB_LANES_ROUND_ROBIN = 0, //!< packet by packet
    UB_LANES_STRICT = 1,      //!< the highest lane that can send, sends
    UB_LANES_DEFICIT = 2,     //!< deficit round robin by weight
};

/// How a switch matches inputs and outputs.
enum UbAllocator : uint8_t
{
    UB_ALLOCATOR_UNLIMITED = 0,     //!< an input feeds any number of outputs at a time
    UB_ALLOCATOR_ISLIP = 1,         //!< iSLIP: an input feeds one output at a time, sped up
    UB_ALLOCATOR_OUTPUT_QUEUED = 2, //!< ideal: packets wait at their output, without limit
};

/**
 * Which mechanisms are compiled into the loop of a plane. What is not compiled in costs nothing;
 * what is compiled in and switched off costs a branch a packet and hop, and there are many.
 */
enum UbFeatures : uint8_t
{
    UB_PLAIN, //!< ideal credits, unlimited crossbars, one lane, and none of the rest
    UB_USUAL, //!< as UB_PLAIN, with credits on packets and iSLIP
    UB_ANY,   //!< all of them, as the settings say
};

/// How a plane's links and switches work; the same for all planes of a network.
struct UbPlaneSettings
{
    uint32_t nLanes{1};        //!< virtual lanes of each port
    uint64_t seed{1};          //!< seed of the hashes
    uint32_t cellBytes{1};     //!< unit of buffers and credits
    uint32_t controlBytes{20}; //!< bytes of a control block that carries credits or a retry
    uint32_t creditGrain{1};   //!< cells that a packet header counts in
    UbCreditReturn creditReturn{UB_CREDIT_IDEAL}; //!< how credits come back
    int64_t creditTimeoutPs{0};                   //!< how long credits wait for a packet to ride on
    bool isShared{false};                         //!< lanes share the buffer of a port
    uint32_t laneFloorCells{0};                   //!< of which each lane has so much for itself
    UbLaneArbitration arbitration{UB_LANES_ROUND_ROBIN}; //!< turns of the lanes
    std::vector<uint32_t> laneWeights;                   //!< by lane, for UB_LANES_DEFICIT
    uint32_t quantumBytes{4096};                         //!< bytes a turn and weight
    UbAllocator allocator{UB_ALLOCATOR_UNLIMITED};       //!< how switches match inputs and outputs
    bool isFifo{false};             //!< one queue an input and lane instead of one an output
    uint32_t iterations{1};         //!< of iSLIP
    double speedup{1.0};            //!< of the crossbar over the input link
    uint64_t retryBufferBytes{0};   //!< bytes that a link keeps until they are acknowledged, 0: all
    uint32_t retryLimit{15};        //!< transmissions of a packet before the link trains anew
    uint32_t retrainLimit{4};       //!< trainings before the link is down
    int64_t retrainPs{0};           //!< time of a training
    uint64_t markBytes{0};          //!< bytes waiting from which packets are marked, 0: never
    uint64_t markAllBytes{0};       //!< bytes waiting from which all are
    double markShare{1.0};          //!< share marked just below markAllBytes
    bool grantsWindows{false};      //!< switches decide on window growth (CAQM)
    int64_t grantPeriodPs{500'000}; //!< time between two looks at a port for that
    uint64_t grantQueueBytes{40960}; //!< bytes that should wait for a port
    double grantGain{0.5};           //!< share of the free rate that is granted (lambda)
    uint32_t grantUnitBytes{32};     //!< bytes that a hint counts
    uint32_t grantMarkBytes{2048};   //!< window that a marked packet gives up (beta)
    double grantMarkShare{0.1};      //!< share of packets marked when little is left to grant
    bool keepsAccount{false};        //!< time spent by packets is kept by cause

    /**
     * @return What is enough to run planes with these settings.
     */
    UbFeatures Features() const
    {
        if (nLanes > 1 || isShared || arbitration != UB_LANES_ROUND_ROBIN || isFifo ||
            markBytes != 0 || grantsWindows || keepsAccount)
        {
            return UB_ANY;
        }
        if (allocator == UB_ALLOCATOR_UNLIMITED && creditReturn == UB_CREDIT_IDEAL)
        {
            return UB_PLAIN;
        }
        return allocator == UB_ALLOCATOR_ISLIP && creditReturn == UB_CREDIT_PIGGYBACK ? UB_USUAL
                                                                                      : UB_ANY;
    }
};

/// Which part of a plane a process is, where several share the work of one plane. An endpoint
/// belongs to the part of the switches that it is attached to, a link to that of its start.
struct UbPlanePart
{
    /// By node: its part; nullptr if the plane is whole.
    std::shared_ptr<const std::vector<uint32_t>> ofNode;
    uint32_t nParts{1}; //!< how many parts there are
    uint32_t number{0}; //!< which of them
};

/// What an endpoint hands to a plane for one packet.
struct UbInjection
{
    uint32_t flow;         //!< the flow, or UB_DEVICE_FLOW and a handle
    uint32_t srcEndpoint;  //!< node number of the source
    uint32_t dstEndpoint;  //!< node number of the destination
    uint32_t directLink;   //!< the direct link to take, or UB_NONE
    uint32_t tag;          //!< the transport's own; comes out as it went in
    uint32_t wireBytes;    //!< bytes on the wire
    uint32_t payloadBytes; //!< bytes of the message
    uint64_t flowHash;     //!< the same for all packets of a flow
    uint64_t packetHash;   //!< differs from packet to packet
    int64_t readyPs;       //!< not sent before
    uint8_t lane;          //!< virtual lane
    uint8_t loadBalance;   //!< UB's load-balance factor, counted up by the source
    bool ordered;          //!< keep to the path of the flow hash whatever the path policy
    uint8_t congestion;    //!< see UbCongestionBits
    uint8_t hint;          //!< window growth asked for, in units of the congestion control
};

/// What a packet says of congestion; switches change it on the way.
enum UbCongestionBits : uint8_t
{
    UB_CONGESTION_CAPABLE = 1, //!< switches may mark the packet
    UB_CONGESTION_MARKED = 2,  //!< a switch found its queue too long (FECN, the C bit of CAQM)
    UB_CONGESTION_GROW = 4,    //!< the sender asks for growth (the I bit of CAQM)
    UB_PACKET_WRITES = 8,      //!< the packet writes memory, at the pace of its destination
};

/// What a plane hands back for one packet that reached its endpoint.
struct UbDelivery
{
    int64_t tailPs;        //!< last byte at the endpoint's port
    int64_t headPs;        //!< first byte at the endpoint's port
    int64_t waitedPs;      //!< time spent waiting in ports
    uint32_t flow;         //!< the flow, or UB_DEVICE_FLOW and a handle
    uint32_t tag;          //!< the transport's own, from the injection
    uint16_t payloadBytes; //!< bytes of the message
    uint8_t hops;          //!< links crossed
    uint8_t congestion;    //!< see UbCongestionBits
    uint8_t hint;          //!< window growth granted
    bool isLost;           //!< died with a link or a switch at tailPs; its source does not know
};

/// Where the time of a packet went, by cause; the parts add up.
struct UbPacketAccount
{
    int64_t waitedPs[4]{};  //!< waiting for a port: at the source, then switch by switch
    int64_t serialisePs{0}; //!< on the wire, and what slower links add
    int64_t propagatePs{0}; //!< in cables
    int64_t switchPs{0};    //!< forwarding latency of switches
};

/// Packets on their way into a plane. On large machines these are megabytes a window.
using UbInjections = UbHugeVector<UbInjection>;

/// What arrived in a plane.
struct UbArrived
{
    UbHugeVector<UbDelivery> packets;       //!< the packets
    UbHugeVector<UbPacketAccount> accounts; //!< where their time went, if that is kept
};

/// What a link did in a run.
struct UbLinkStats
{
    uint64_t retries{0}; //!< transmissions that a bit error spoilt

    uint64_t packets{0};       //!< packets sent
    uint64_t bytes{0};         //!< bytes sent, headers included
    int64_t busyPs{0};         //!< time spent sending
    uint64_t maxQueueBytes{0}; //!< most bytes that waited for the link, summed over lanes
    int64_t noCreditPs{0};     //!< time with packets waiting and no credit to send them
};

/**
 * @ingroup ub-fabric
 * @brief Receives what happens inside a plane, packet by packet; only while somebody listens.
 */
class UbPlaneObserver
{
  public:
    virtual ~UbPlaneObserver() = default;
    /**
     * A packet began to leave on a link.
     * @param [in] nowPs The time.
     * @param [in] link The link, by its number in the fabric.
     * @param [in] flow The flow.
     * @param [in] wireBytes Bytes on the wire.
     */
    virtual void PacketSent(int64_t nowPs, uint32_t link, uint32_t flow, uint32_t wireBytes) = 0;
    /**
     * A packet's last byte reached its endpoint.
     * @param [in] nowPs The time.
     * @param [in] link The last link.
     * @param [in] flow The flow.
     * @param [in] payloadBytes Bytes of the message.
     */
    virtual void PacketDelivered(int64_t nowPs,
                                 uint32_t link,
                                 uint32_t flow,
                                 uint32_t payloadBytes) = 0;
    /**
     * A link has packets and no credit to send them.
     * @param [in] nowPs The time.
     * @param [in] link The link.
     */
    virtual void CreditStall(int64_t nowPs, uint32_t link) = 0;
    /**
     * A link sent a packet in vain and will send it again.
     * @param [in] nowPs When the start of the link knows.
     * @param [in] link The link.
     * @param [in] flow The flow.
     */
    virtual void Retried(int64_t nowPs, uint32_t link, uint32_t flow) = 0;
    /**
     * A link changed: it is down, slower, or back.
     * @param [in] nowPs The time.
     * @param [in] link The link.
     * @param [in] bytesPerS Its rate, 0 when down.
     */
    virtual void LinkChanged(int64_t nowPs, uint32_t link, uint64_t bytesPerS) = 0;
};

/**
 * @ingroup ub-fabric
 * @brief One plane of the fabric: its ports, links, switches, packets and events.
 *
 * Planes share no link, no switch and no buffer, so each is a logical process of its own:
 * nothing in here is touched by another plane. Endpoints put packets in (Inject) and find
 * deliveries in an outbox.
 *
 * A packet costs one event a switch, one more wherever it has to wait for a port, and none at
 * the end of a transmission when nothing waits. The policy that picks a path is compiled into
 * the loop (UbPlaneEngine), so no virtual call is made a packet and hop.
 *
 * A plane may also be a part of one, see UbPlaneParts: it knows all links, and runs those that
 * leave its own nodes.
 */
class UbPlane
{
  public:
    /**
     * @param [in] arrays The fabric.
     * @param [in] plane Which plane of it.
     * @param [in] settings How its links and switches work.
     * @param [in] part Which part of the plane.
     */
    UbPlane(const UbFabricArrays& arrays,
            uint32_t plane,
            const UbPlaneSettings& settings,
            const UbPlanePart& part);
    virtual ~UbPlane() = default;

    UbPlane(const UbPlane&) = delete;
    UbPlane& operator=(const UbPlane&) = delete;

    /**
     * Put a packet into the port of its source endpoint.
     * @param [in] injection The packet.
     */
    virtual void Inject(const UbInjection& injection) = 0;

    /**
     * Put packets into the ports of their sources.
     * @param [in,out] injections The packets; none are left.
     */
    virtual void Accept(UbInjections& injections) = 0;

    /**
     * Process all events before a time.
     * @param [in] limitPs The time.
     */
    virtual void RunBefore(int64_t limitPs) = 0;

    struct Crossing;

    /**
     * @return Number of the plane.
     */
    uint32_t Number() const
    {
        return m_number;
    }

    /**
     * @return Which part of its plane this is.
     */
    const UbPlanePart& Part() const
    {
        return m_part;
    }

    /**
     * @return By part: what this part has for it since the caller last took that away.
     */
    std::vector<Crossing>& Leaving()
    {
        return m_leaving;
    }

    /**
     * Take in what another part had for this one.
     * @param [in,out] crossing What it had; nothing is left.
     * @param [in] nowPs How far both parts have come; nothing of it has an effect before.
     */
    virtual void Enter(Crossing& crossing, int64_t nowPs) = 0;

    /**
     * @return Time of the next event, UB_NEVER if none.
     */
    int64_t NextTime()
    {
        return m_queue.NextTime();
    }

    /**
     * @return Deliveries since the last time the caller emptied this.
     */
    UbArrived& Outbox()
    {
        return m_outbox;
    }

    /**
     * Let a link change at a time to come; before the first packet only, in order of time.
     * @param [in] timePs The time.
     * @param [in] fabricLink The link, by its number in the fabric.
     * @param [in] bytesPerS Its rate from then on, 0 for down.
     * @param [in] bitErrorRate Its bit error rate from then on.
     */
    void ScheduleLink(int64_t timePs, uint32_t fabricLink, uint64_t bytesPerS, double bitErrorRate);

    /**
     * Let a switch die, or come back, at a time to come; its links are scheduled apart. A dead
     * switch loses what it holds.
     * @param [in] timePs The time.
     * @param [in] node The switch, by its number in the fabric.
     * @param [in] isDead Whether it dies.
     */
    void ScheduleLoss(int64_t timePs, uint32_t node, bool isDead);

    /**
     * @return Links of the fabric that gave up for bit errors, and when, since the caller last
     * emptied this.
     */
    std::vector<std::pair<uint32_t, int64_t>>& Broken()
    {
        return m_broken;
    }

    /**
     * @return Whether anything changes in the course of the run.
     */
    bool Changes() const
    {
        return m_mayBreak || !m_changes.empty() || !m_comingRoutes.empty();
    }

    /**
     * @return Whether links may give up for bit errors.
     */
    bool MayBreak() const
    {
        return m_mayBreak;
    }

    /**
     * @return Packets lost so far with switches that died or for want of a route.
     */
    uint64_t PacketsLost() const
    {
        return m_packetsLost;
    }

    /**
     * Make routes that the plane may take on later.
     * @param [in] arrays The fabric as it will be, with the same nodes, links and planes.
     */
    void PrepareRoutes(const UbFabricArrays& arrays);

    /**
     * Take on the routes that were prepared first, and find packets that wait for dead links a
     * new way. The plane must stand exactly at the time.
     * @param [in] nowPs The time.
     */
    void UseRoutes(int64_t nowPs);

    /**
     * @param [in] src An endpoint.
     * @param [in] dst Another.
     * @return Whether the plane's switches lead from one to the other now.
     */
    bool HasRoute(uint32_t src, uint32_t dst) const;

    /**
     * @param [in] src An endpoint.
     * @param [in] nowPs The time.
     * @return Time that the ports of the endpoint need for what waits in them.
     */
    int64_t BacklogPs(uint32_t src, int64_t nowPs) const;

    /**
     * @param [out] links Links of the fabric that hold packets and cannot send them.
     */
    void ReadStalled(std::vector<uint32_t>& links) const;

    /**
     * Say what the links have done by now.
     * @param [out] bytes Bytes sent, by number of the link in the fabric.
     * @param [out] waitingBytes Bytes that wait, likewise.
     */
    void Sample(uint64_t* bytes, uint64_t* waitingBytes) const;

    /**
     * Let sources send at their time only, so that Sample says what is true at that time.
     */
    void KeepTime()
    {
        m_sendsAhead = false;
    }

    /**
     * @param [in] endpoint A node number.
     * @return Whether the plane's switches reach it.
     */
    bool Reaches(uint32_t endpoint) const
    {
        return m_routes.ends[endpoint].endpointClass >= 0;
    }

    /**
     * @param [in] observer Who watches, nullptr for nobody.
     */
    void SetObserver(UbPlaneObserver* observer)
    {
        m_observer = observer;
    }

    /**
     * @return Time of the last event processed.
     */
    int64_t LastPs() const
    {
        return m_lastPs;
    }

    /**
     * @return Packets times links crossed.
     */
    uint64_t PacketHops() const
    {
        return m_packetHops;
    }

    /**
     * @return Events processed.
     */
    uint64_t EventCount() const
    {
        return m_eventCount;
    }

    /**
     * @return Packets inside the plane, waiting at the source included.
     */
    uint64_t PacketsInside() const
    {
        return m_packetsInside;
    }

    /**
     * Copy the statistics of the plane's links to where the fabric numbers them.
     * @param [out] stats Array over all links of the fabric.
     */
    void ReadStats(UbLinkStats* stats) const;

    /**
     * Say whether the plane is as it was before the first packet.
     * @return Empty, or what is left: packets, waiting bytes or missing credits of a link.
     */
    std::string Leftover() const;

  protected:
    /// Kinds of events; at one instant arrivals come before departures.
    enum EventKind : uint32_t
    {
        CHANGE = 0,  //!< links or switches change
        HEAD = 1,    //!< a packet may leave the switch that its link enters
        PORT = 2,    //!< look at the waiting packets of a link
        MATCH = 3,   //!< match inputs and outputs of a switch, one event an output
        DELIVER = 4, //!< last byte at the endpoint; only while somebody listens
        SENT = 5,    //!< a packet begins to leave; only while somebody listens
        RETRIED = 6, //!< a packet was spoilt; only while somebody listens
    };

    static constexpr uint32_t KIND_SHIFT = 29; //!< kind above, link below
    static constexpr uint8_t ORDERED = 128;    //!< packet keeps to the path of its hash
    static constexpr uint8_t IN_LINE = 64;     //!< packet waited behind others of its input
    static constexpr uint8_t REROUTED = 32;    //!< packet was at an output that is down now
    static constexpr uint8_t OWN_BITS = ORDERED | IN_LINE | REROUTED; //!< nobody else's

    /// A packet; one cache line. Sizes are 16 bits wide: UbFabric checks them.
    struct alignas(64) Packet
    {
        int64_t readyPs;       //!< not sent before
        int64_t waitedPs;      //!< time spent waiting in ports so far
        uint32_t serialisePs;  //!< time on a link of class rateClass
        uint32_t next;         //!< next packet of the same queue; before HEAD the link, if guessed
        uint32_t flow;         //!< the flow, or UB_DEVICE_FLOW and a handle
        uint32_t tag;          //!< the transport's own
        uint32_t dstClass;     //!< class of the destination
        uint32_t inLink;       //!< link whose input buffer holds the packet, UB_NONE at the source
        uint32_t atSwitch;     //!< switch that inLink enters
        uint32_t hash;         //!< what the path policy asked for
        uint16_t atInput;      //!< number of inLink among the inputs of that switch
        uint16_t dstSlot;      //!< slot of the destination in its class
        uint16_t wireBytes;    //!< bytes on the wire
        uint16_t payloadBytes; //!< bytes of the message
        uint16_t rateClass;    //!< rate class that serialisePs is for
        uint16_t cells;        //!< cells of buffer
        uint8_t lane;          //!< virtual lane
        uint8_t hops;          //!< links crossed
        uint8_t bits;          //!< see UbCongestionBits and OWN_BITS
        uint8_t hint;          //!< window growth asked for
    };

    static_assert(sizeof(Packet) == 64, "a packet is one cache line");

    /// A credit for another part of the plane.
    struct CrossingCredit
    {
        int64_t freePs; //!< when the buffer is free
        uint32_t lane;  //!< [link][lane]
        uint32_t cells; //!< how much
    };

  public:
    /// What one part of a plane has for another.
    struct Crossing
    {
        std::vector<CrossingCredit> credits; //!< for links that end in the part that has them
        std::vector<Packet> packets; //!< readyPs: when the head may leave the switch it comes to
    };

  protected:
    /// A link: an output port at its start, an input buffer at its end. One cache line.
    struct alignas(64) Link
    {
        int64_t busyUntilPs{0};      //!< end of the transmission under way
        int64_t wakePs{UB_NEVER};    //!< time of the pending PORT event
        uint64_t bytes{0};           //!< bytes sent
        uint32_t packets{0};         //!< packets sent
        uint32_t delayPs{0};         //!< propagation, either way
        uint32_t nWaiting{0};        //!< packets waiting, all lanes
        uint32_t srcSwitch{UB_NONE}; //!< switch at the start, UB_NONE for an endpoint
        uint32_t dstSwitch{UB_NONE}; //!< switch at the end, UB_NONE for an endpoint
        uint16_t dstInput{0};        //!< number among the inputs of that switch
        uint16_t nInputs{1};         //!< inputs of the node that it leaves
        uint16_t rateClass{0};       //!< which rate
        uint16_t outputNumber{0};    //!< number among the outputs of the switch at the start
        uint8_t lastLane{0};         //!< lane served last
        uint8_t flags{0};            //!< see LinkFlags
        uint32_t sink{UB_NONE};      //!< the slow sink that it enters
    };

    static_assert(sizeof(Link) == 64, "a link is one cache line");

    /// What is special about a link; nothing is, as a rule.
    enum LinkFlags : uint8_t
    {
        WATCHED = 1,       //!< it has bit errors, or it changes in the course of the run
        DOWN = 2,          //!< it carries nothing now
        AWAITED = 4,       //!< the reverse link is out of credit and waits for packets to leave
        IS_SLOW_SINK = 8,  //!< it enters an endpoint that takes writes more slowly
        KEEPS_LITTLE = 16, //!< its retry buffer does not cover the round trip
        STALLED = 32,      //!< it waits for credit
        CROSSES = 64,      //!< it ends in another part of the plane
    };

    /// A credit on its way back.
    struct Credit
    {
        int64_t timePs;     //!< when the start of the link knows
        uint32_t cells;     //!< how much
        bool isRest{false}; //!< in a control block of its own, since no header counts so few
    };

    /// A virtual lane of a link. Two cache lines: the second is for credits that come back. A
    /// packet that goes on touches the lane it came by, so the first one keeps here what the
    /// crossbar knows of the input.
    struct alignas(64) Lane
    {
        static constexpr uint8_t RING_BITS = 2;            //!< log2 of N_OWN
        static constexpr uint32_t N_OWN = 1U << RING_BITS; //!< credits that find room in here

        int64_t credit{0};           //!< cells free in the buffer at the end, as known here
        Credit* ring{nullptr};       //!< credits on their way back, by time
        int64_t restPs{0};           //!< when the start of the link knows of `rest`
        int64_t readPs{0};           //!< crossbar at the end: when the last packet has been read
        uint32_t returnPs{0};        //!< from a free buffer to a credit, at most
        uint32_t ringHead{0};        //!< first credit on its way back
        uint32_t ringCount{0};       //!< credits on their way back
        uint32_t waitingBytes{0};    //!< bytes waiting to leave on the lane
        uint32_t maxWaitingBytes{0}; //!< most bytes that waited
        uint32_t nWaiting{0};        //!< packets waiting to leave on the lane
        uint16_t lastInput{0};       //!< input served last
        uint16_t turn{0};            //!< crossbar at the end: output accepted last
        uint8_t ringBits{RING_BITS}; //!< log2 of the length of the ring
        uint8_t rest{0};             //!< cells too few for the grain of a packet header
        bool needsCredit{false};     //!< wake the link when a credit is on its way
        bool isAway{false};          //!< the link starts in another part of the plane
        alignas(64) std::array<Credit, N_OWN> own; //!< the ring, unless there are more

        /**
         * @return Length of the ring, less one.
         */
        uint32_t RingMask() const
        {
            return (1U << ringBits) - 1;
        }
    };

    static_assert(sizeof(Lane) == 128, "a lane is two cache lines");

    /// A queue of packets from one input to one output on one lane.
    struct Queue
    {
        uint32_t head{UB_NONE}; //!< first packet
        uint32_t tail{UB_NONE}; //!< last packet
        int64_t readyPs{0};     //!< when the first packet is ready
    };

    /// What waits on a lane of an output, by input. One cache line, and all that most ever need:
    /// a switch has as many queues as pairs of ports, but few of them hold packets at a time.
    struct alignas(64) Waiting
    {
        static constexpr uint32_t N_OWN = 3;     //!< queues that find room in here
        static constexpr uint32_t N_NARROW = 64; //!< inputs of the widest node with few queues

        uint64_t bits{0};             //!< which of up to N_NARROW inputs have packets
        uint32_t more{UB_NONE};       //!< first queue in m_queues if these are not enough
        uint16_t nQueues{0};          //!< queues that hold packets, one after another by input
        uint16_t nPlaces{N_OWN};      //!< queues for which there is room
        std::array<Queue, N_OWN> own; //!< the queues, unless there are more
    };

    static_assert(sizeof(Waiting) == 64, "what waits on a lane is one cache line");

    /// What an output may send.
    struct Candidate
    {
        uint32_t lane{0};         //!< virtual lane
        uint32_t input{0};        //!< input
        uint32_t place{0};        //!< of its queue among those of the output
        uint32_t packet{UB_NONE}; //!< first packet of its queue, UB_NONE if nothing may go
        int64_t wakePs{UB_NEVER}; //!< when to look again, if nothing may go
        bool isStalled{false};    //!< packets wait for credit
    };

    /// The memory of an endpoint that takes writes more slowly than a link brings them.
    struct Sink
    {
        int64_t freePs{0}; //!< when it has taken what came
        double share{1.0}; //!< its rate over the rate of the link
    };

    /// A packet that waited at its source.
    struct AtSource
    {
        int64_t startPs; //!< when it left
        uint32_t bytes;  //!< bytes on the wire
    };

    /// What waited at a source, found out afterwards; see CountAtSource.
    struct SourceQueue
    {
        std::vector<AtSource> waiting; //!< packets that wait when the last one counted was ready
        size_t first{0};               //!< first of them
        uint64_t bytes{0};             //!< their bytes
        uint64_t maxBytes{0};          //!< most bytes that waited
    };

    /// Times at which packets left on a link, for credits that ride on them. One cache line, and
    /// all that most ever need.
    struct alignas(64) Departures
    {
        static constexpr uint32_t N_OWN = 5; //!< times that find room in here

        int64_t* times{nullptr};        //!< ring of times, rising
        uint32_t size{N_OWN};           //!< its length
        uint32_t first{0};              //!< first that may still matter
        uint32_t count{0};              //!< how many
        uint32_t keptPs{0};             //!< how long they may matter
        std::array<int64_t, N_OWN> own; //!< the ring, unless there are more

        /**
         * @param [in] i Which, up to the one after the last.
         * @return Its place in the ring.
         */
        uint32_t Place(uint32_t i) const
        {
            const uint32_t place = first + i;
            return place < size ? place : place - size;
        }

        /**
         * @param [in] i Which.
         * @return The time.
         */
        int64_t At(uint32_t i) const
        {
            return times[Place(i)];
        }
    };

    static_assert(sizeof(Departures) == 64, "departures are one cache line");

    /// Memory for any of these.
    struct alignas(64) CacheLine
    {
        std::array<std::byte, 64> bytes; //!< of something else
    };

    /// A switch.
    struct Switch
    {
        uint32_t node{UB_NONE};        //!< its number in the fabric
        bool isDead{false};            //!< loses all that it holds
        std::vector<uint32_t> outputs; //!< links that leave it
    };

    /// Packets in the retry buffer of a link.
    struct Unacknowledged
    {
        std::deque<std::pair<int64_t, uint32_t>> packets; //!< when acknowledged, and bytes
        uint64_t bytes{0};                                //!< their bytes
    };

    /// What a port may still grant to windows; see Grant.
    struct Allowance
    {
        int64_t fromPs{0};  //!< start of the period
        uint64_t bytes{0};  //!< bytes that came for the port in it
        double credit{0};   //!< bytes that windows may grow by
        double granted{0};  //!< bytes granted in the period
        double taken{0};    //!< bytes that marks took from windows and nobody got yet
        bool isFresh{true}; //!< no packet came yet
    };

    /// A link's state from some time on.
    struct LinkState
    {
        int64_t fromPs;      //!< the time
        uint64_t bytesPerS;  //!< its rate, 0 for down
        double bitErrorRate; //!< its bit error rate
    };

    /// How a packet would get across a watched link.
    struct Plan
    {
        uint32_t packet{UB_NONE};      //!< the packet
        int64_t askedPs{-1};           //!< when the question was put
        int64_t startPs{0};            //!< start of the transmission that gets through, or UB_NEVER
        uint64_t bytesPerS{0};         //!< rate of it
        uint32_t draws{0};             //!< transmissions tried
        uint32_t retrains{0};          //!< trainings
        std::vector<int64_t> spoiltPs; //!< when the link learns of each spoilt transmission
    };

    /// What a watched link knows of itself.
    struct Watch
    {
        Plan plan;                     //!< of the packet that wants to leave
        std::vector<LinkState> states; //!< states to come and the present one, in order of time
        size_t present{0};             //!< which is the present one
        uint64_t draws{0};             //!< transmissions tried, each with luck of its own
        uint32_t retrains{0};          //!< trainings so far
        uint64_t retries{0};           //!< spoilt transmissions
        int64_t busyPs{0};             //!< time spent sending, in vain or not
    };

    /// Links to choose from; there are two at least.
    struct Group
    {
        uint32_t first;  //!< first link, or its place in Routes::groupLink if step is 0
        uint32_t step;   //!< from one link to the next, 0 if that is not always the same
        uint32_t nLinks; //!< how many
        uint32_t number; //!< number among all groups of the plane, those of one link included
    };

    /// Bit of a way that is a single link, as nearly all are; the link is below.
    static constexpr uint32_t ONE_LINK = 1U << 30;

    /// What routes know of a node, as an end of them.
    struct End
    {
        int64_t out;           //!< way out: -(way + 2), or start of a row of ways; -1 for none
        int32_t endpointClass; //!< class, -1: not attached
        int32_t slot;          //!< slot in the class
    };

    /// Tables of routes. A way is a link and ONE_LINK, or else the number of a group.
    struct Routes
    {
        UbHugeVector<End> ends;          //!< by node
        UbHugeVector<int32_t> table;     //!< rows of ways by destination class: switches, rest
        UbHugeVector<int32_t> local;     //!< ways of the last hop
        std::vector<Group> groups;       //!< groups of several links
        std::vector<uint32_t> groupLink; //!< links of those that have no step
        uint32_t nClasses{0};            //!< classes; rows have an entry more, for nowhere

        /**
         * @param [in] group A group.
         * @param [in] choice Which of its links.
         * @return The link.
         */
        uint32_t LinkOf(const Group& group, uint32_t choice) const
        {
            return group.step != 0 ? group.first + choice * group.step
                                   : groupLink[group.first + choice];
        }
    };

    /// What changes at a time.
    struct Change
    {
        int64_t timePs;         //!< the time
        uint32_t link{UB_NONE}; //!< a link takes on its next state
        uint32_t chip{UB_NONE}; //!< a switch dies or comes back
        bool isDead{false};     //!< it dies, and loses what it holds
    };

    /**
     * @param [in] index A packet.
     * @return It.
     */
    Packet& At(uint32_t index)
    {
        return m_packets[index];
    }

    /**
     * @param [in] index A switch.
     * @return The start of its row of the table of routes.
     */
    uint64_t RowOf(uint32_t index) const
    {
        return index * (uint64_t{m_routes.nClasses} + 1);
    }

    /**
     * Give a packet back to the pool.
     * @param [in] index The packet.
     */
    void Free(uint32_t index)
    {
        m_freePackets.push_back(index);
        --m_packetsInside;
    }

    /**
     * @param [in] link A link of the plane.
     * @return Its number in the fabric.
     */
    uint32_t FabricLink(uint32_t link) const
    {
        return m_linkNumber[link];
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link A link of the plane.
     * @param [in] lane A virtual lane.
     * @return The lane of the link.
     */
    template <UbFeatures F>
    Lane& LaneOf(uint32_t link, uint32_t lane)
    {
        return m_lanes[F == UB_ANY ? uint64_t{link} * m_nLanes + lane : link];
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] packet A packet at a switch.
     * @return The first lane of the link by which it came, which keeps what is known of the input.
     */
    template <UbFeatures F>
    Lane& InputOf(const Packet& packet)
    {
        return LaneOf<F>(packet.inLink, 0);
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link An output.
     * @param [in] lane A lane of it.
     * @return What waits there.
     */
    template <UbFeatures F>
    Waiting& WaitingOf(uint32_t link, uint32_t lane)
    {
        return m_waiting[F == UB_ANY ? uint64_t{link} * m_nLanes + lane : link];
    }

    /**
     * @param [in] waiting What waits on a lane.
     * @return Its first queue.
     */
    Queue* QueuesOf(Waiting& waiting)
    {
        return waiting.more == UB_NONE ? waiting.own.data() : &m_queues[waiting.more];
    }

    /**
     * @param [in] waiting What waits on a lane.
     * @param [in] nInputs Inputs of its node.
     * @return Which inputs have packets, 64 to a word.
     */
    uint64_t* WordsOf(Waiting& waiting, uint32_t nInputs)
    {
        // a wide node, where few queues would have to make room for many, has one for each input
        return nInputs <= Waiting::N_NARROW ? &waiting.bits : &m_words[waiting.bits];
    }

    /**
     * @param [in] waiting What waits on a lane.
     * @param [in] nInputs Inputs of its node.
     * @param [in] input An input.
     * @return Place of the queue of the input: as many queues of others come before it.
     */
    static uint32_t PlaceOf(const Waiting& waiting, uint32_t nInputs, uint32_t input)
    {
        if (nInputs > Waiting::N_NARROW)
        {
            return input;
        }
        const uint64_t before = waiting.bits & ((uint64_t{1} << input) - 1);
        return (before & (before - 1)) == 0 // as a rule
                   ? (before != 0 ? 1 : 0)
                   : static_cast<uint32_t>(__builtin_popcountll(before));
    }

    /**
     * Make room for the queue of an input.
     * @param [in,out] waiting What waits on the lane.
     * @param [in] nInputs Inputs of the node.
     * @param [in] input The input, which has no packets.
     * @return The queue.
     */
    Queue& OpenQueue(Waiting& waiting, uint32_t nInputs, uint32_t input);

    /**
     * Give up the queue of an input.
     * @param [in,out] waiting What waits on the lane.
     * @param [in] nInputs Inputs of the node.
     * @param [in] input The input, which has no packets left.
     * @param [in] place Place of its queue.
     */
    void CloseQueue(Waiting& waiting, uint32_t nInputs, uint32_t input, uint32_t place);

    /**
     * @param [in] link A link that keeps little.
     * @param [in] bytes Bytes of a packet that wants to leave on it.
     * @param [in] nowPs The time.
     * @return When its retry buffer has room for the packet.
     */
    int64_t RetryRoomPs(uint32_t link, uint32_t bytes, int64_t nowPs);

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Virtual lanes of each port.
     */
    template <UbFeatures F>
    uint32_t NLanes() const
    {
        return F == UB_ANY ? m_nLanes : 1;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return How credits come back.
     */
    template <UbFeatures F>
    UbCreditReturn CreditReturn() const
    {
        return F == UB_ANY     ? m_settings.creditReturn
               : F == UB_PLAIN ? UB_CREDIT_IDEAL
                               : UB_CREDIT_PIGGYBACK;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return How switches match inputs and outputs.
     */
    template <UbFeatures F>
    UbAllocator Allocator() const
    {
        return F == UB_ANY     ? m_settings.allocator
               : F == UB_PLAIN ? UB_ALLOCATOR_UNLIMITED
                               : UB_ALLOCATOR_ISLIP;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return How lanes take turns.
     */
    template <UbFeatures F>
    UbLaneArbitration Arbitration() const
    {
        return F == UB_ANY ? m_settings.arbitration : UB_LANES_ROUND_ROBIN;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Whether lanes share the buffer of a port.
     */
    template <UbFeatures F>
    bool IsShared() const
    {
        return F == UB_ANY && m_settings.isShared;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Whether an input has one queue for all outputs.
     */
    template <UbFeatures F>
    bool IsFifo() const
    {
        return F == UB_ANY && m_settings.isFifo;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Whether time is kept by cause.
     */
    template <UbFeatures F>
    bool KeepsAccount() const
    {
        return F == UB_ANY && m_settings.keepsAccount;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Whether ports mark packets.
     */
    template <UbFeatures F>
    bool Marks() const
    {
        return F == UB_ANY && m_settings.markBytes != 0;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @return Whether switches decide on window growth.
     */
    template <UbFeatures F>
    bool GrantsWindows() const
    {
        return F == UB_ANY && m_settings.grantsWindows;
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link A link.
     * @return Whether its switch matches it with inputs.
     */
    template <UbFeatures F>
    bool IsMatched(const Link& link) const
    {
        return Allocator<F>() == UB_ALLOCATOR_ISLIP && link.srcSwitch != UB_NONE;
    }

    /**
     * Make sure that a link is looked at, at a time or before.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] linkIndex The link.
     * @param [in] timePs The time.
     */
    template <UbFeatures F>
    void Wake(uint32_t linkIndex, int64_t timePs)
    {
        Link& link = m_links[linkIndex];
        if (timePs < link.wakePs)
        {
            link.wakePs = timePs;
            if (IsMatched<F>(link))
            {
                // all outputs of a switch that are free at an instant choose together
                m_queue.Push(timePs, (MATCH << KIND_SHIFT) | link.srcSwitch, linkIndex);
                return;
            }
            m_queue.Push(timePs, (PORT << KIND_SHIFT) | linkIndex, 0);
        }
    }

    /**
     * Send a packet's worth of credit back to the start of a link.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in,out] lane The lane.
     * @param [in] cells The cells.
     * @param [in] freePs When the buffer is free.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void ReturnCredit(uint32_t link, Lane& lane, uint32_t cells, int64_t freePs, int64_t nowPs);

    /**
     * Note a credit on its way to the start of a link.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in,out] lane The lane.
     * @param [in] cells The cells.
     * @param [in] freePs When the buffer is free.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void NoteCredit(uint32_t link, Lane& lane, uint32_t cells, int64_t freePs, int64_t nowPs);

    /**
     * Take in what another part had for this one.
     * @tparam F Which mechanisms are compiled in.
     * @param [in,out] crossing What it had; nothing is left.
     * @param [in] nowPs How far both parts have come.
     */
    template <UbFeatures F>
    void EnterAs(Crossing& crossing, int64_t nowPs);

    /**
     * Take in the credits that have arrived.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in,out] lane The lane.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void CollectCredits(uint32_t link, Lane& lane, int64_t nowPs);

    /**
     * Take in the first credit on its way back.
     * @param [in,out] lane The lane.
     */
    static void PopCredit(Lane& lane)
    {
        lane.credit += lane.ring[lane.ringHead].cells;
        lane.ringHead = (lane.ringHead + 1) & lane.RingMask();
        --lane.ringCount;
    }

    /**
     * Take in the cells that no packet header could count, when their time has come.
     * @param [in,out] lane The lane.
     * @param [in] nowPs The time.
     */
    static void TakeRest(Lane& lane, int64_t nowPs)
    {
        if (lane.rest > 0 && lane.restPs <= nowPs)
        {
            lane.credit += lane.rest;
            lane.rest = 0;
        }
    }

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link A link.
     * @param [in] lane A lane of it that has credits on their way back.
     * @return When the first of them is known, as far as is known now.
     */
    template <UbFeatures F>
    int64_t NextCreditPs(uint32_t link, const Lane& lane) const;

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link A link.
     * @param [in] lane A lane of it with a credit in its ring.
     * @return When the first credit of the ring is known, as far as is known now.
     */
    template <UbFeatures F>
    int64_t FirstCreditPs(uint32_t link, const Lane& lane) const;

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in,out] lane The lane.
     * @param [in] cells Cells wanted.
     * @param [in] nowPs The time.
     * @return Whether the lane has credit for them.
     */
    template <UbFeatures F>
    bool HasCredit(uint32_t link, Lane& lane, uint32_t cells, int64_t nowPs)
    {
        if (lane.credit >= cells)
        {
            return true;
        }
        CollectCredits<F>(link, lane, nowPs);
        return lane.credit >= cells || (IsShared<F>() && HasShared<F>(link, lane, cells, nowPs));
    }

    /**
     * Put a packet into the port of its source endpoint.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] injection The packet.
     */
    template <UbFeatures F>
    void InjectAs(const UbInjection& injection);

    /**
     * Append a packet to a queue of an output.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The output.
     * @param [in] input The input it came from.
     * @param [in] index The packet.
     */
    template <UbFeatures F>
    void Enqueue(uint32_t link, uint32_t input, uint32_t index);

    /**
     * Find an input that has a packet waiting; there must be one.
     * @param [in] bits Which inputs have.
     * @param [in] words Words of bits.
     * @param [in] from Where to begin; the search goes round.
     * @return The input.
     */
    static uint32_t NextInput(const uint64_t* bits, uint32_t words, uint32_t from);

    /**
     * Decide on the window growth that a packet asks for at its output, as CAQM does: grant it,
     * refuse it, or mark the packet.
     * @param [in] link The output.
     * @param [in,out] packet The packet.
     * @param [in] nowPs The time.
     */
    void Grant(uint32_t link, Packet& packet, int64_t nowPs);

    /**
     * Serve an output: send the next packet that may go, or arrange to be woken.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The output.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void Serve(uint32_t link, int64_t nowPs);

    /**
     * Match the inputs of a switch and the outputs in m_matching (iSLIP) and send what is matched.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] index The switch.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void Match(uint32_t index, int64_t nowPs);

    /**
     * Put a packet on a link.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void Transmit(uint32_t link, uint32_t index, int64_t nowPs);

    /**
     * @param [in] link A link that is watched.
     * @param [in,out] packet A packet that wants to leave on it.
     * @param [in] nowPs The time.
     * @return Whether it would get across before the link changes for the worse.
     */
    bool CanCross(uint32_t link, Packet& packet, int64_t nowPs);

    /**
     * Carry out what changes at a time.
     * @param [in] index The change.
     * @param [in] nowPs The time.
     */
    void Apply(uint32_t index, int64_t nowPs);

    /**
     * Give up a packet.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     */
    void Lose(uint32_t index, int64_t nowPs);

    /**
     * A packet of a queue of one input's own may go to its output now.
     * @param [in] link The input.
     * @param [in] lane The lane.
     * @param [in] nowPs The time.
     */
    void NextInLine(uint32_t link, uint32_t lane, int64_t nowPs);

    /**
     * With one queue an input, find out whether a packet may ask for its output.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     * @return Whether it may; if not, it waits behind others.
     */
    bool IsFirstInLine(uint32_t index, int64_t nowPs);

    /**
     * Keep what the observer is to be told of a packet that leaves.
     * @param [in] packet The packet.
     * @return Number of the record.
     */
    uint32_t SentRecord(const Packet& packet);

    /**
     * Tell the observer of a packet that leaves, or is to leave again.
     * @param [in] link The link.
     * @param [in] record What SentRecord returned.
     * @param [in] nowPs The time.
     * @param [in] isRetry Whether it is to leave again.
     */
    void Sent(uint32_t link, uint32_t record, int64_t nowPs, bool isRetry);

    /**
     * @param [in] link A link.
     * @param [in,out] packet A packet, whose time on the link is remembered.
     * @return The packet's time on the link.
     */
    int64_t SerialisePs(const Link& link, Packet& packet) const
    {
        if (packet.rateClass != link.rateClass)
        {
            packet.rateClass = link.rateClass;
            packet.serialisePs =
                static_cast<uint32_t>(UbSerialisePs(packet.wireBytes, m_rates[link.rateClass]));
        }
        return packet.serialisePs;
    }

    /**
     * @param [in] injection A packet to come.
     * @return The 32 bits that the path policy wants to find in the packet.
     */
    virtual uint32_t PathHash(const UbInjection& injection) const = 0;

    /**
     * Choose among the links of a way.
     * @param [in] way The way.
     * @param [in] packet The packet.
     * @param [in] nowPs The time.
     * @return The link.
     */
    virtual uint32_t Choose(uint32_t way, const Packet& packet, int64_t nowPs) = 0;

    /**
     * @param [in] link An output.
     * @param [in] packet A packet that may go there.
     * @param [in] nowPs The time.
     * @return Time until the packet could leave, as far as the port itself can tell: what is
     * being sent, what waits, and what the receiver has no room for.
     */
    int64_t PortBacklogPs(uint32_t link, const Packet& packet, int64_t nowPs) const
    {
        const Link& port = m_links[link];
        const Lane& lane = m_lanes[uint64_t{link} * m_nLanes + packet.lane];
        const int64_t lackingCells = std::max<int64_t>(0, packet.cells - lane.credit);
        return std::max<int64_t>(0, port.busyUntilPs - nowPs) +
               UbSerialisePs(lane.waitingBytes + lackingCells * m_settings.cellBytes,
                             m_rates[port.rateClass]);
    }

    /**
     * Bring into the cache what a packet that leaves on a link touches.
     * @param [in] link The link.
     */
    void PrefetchLink(uint32_t link) const
    {
        PrefetchPort(link);
        UbPrefetch(&m_waiting[uint64_t{link} * m_nLanes]);
        PrefetchDepartures(link);
    }

    /**
     * Bring into the cache what says whether a packet may leave on a link.
     * @param [in] link The link.
     */
    void PrefetchPort(uint32_t link) const
    {
        UbPrefetch(&m_links[link]);
        PrefetchCredits(link);
    }

    /**
     * Bring into the cache what notes departures on a link, if anything does.
     * @param [in] link The link.
     */
    void PrefetchDepartures(uint32_t link) const
    {
        if (!m_departures.empty())
        {
            UbPrefetch(&m_departures[link]);
        }
    }

    /**
     * Bring into the cache what says where a credit of a link will be noted.
     * @param [in] link The link.
     */
    void PrefetchCredits(uint32_t link) const
    {
        UbPrefetch(&m_lanes[uint64_t{link} * m_nLanes]);
    }

    /**
     * Bring into the cache where a departure will be noted, if not with the link.
     * @param [in] link A link that is in the cache.
     */
    void PrefetchTimes(uint32_t link) const
    {
        if (!m_departures.empty())
        {
            const Departures& departures = m_departures[link];
            if (departures.size > Departures::N_OWN)
            {
                UbPrefetch(&departures.times[departures.Place(departures.count)]);
            }
        }
    }

    /**
     * Bring into the cache where a credit on its way back will be noted.
     * @param [in] link A link whose first lane is in the cache.
     */
    void PrefetchRing(uint32_t link) const
    {
        const Lane& lane = m_lanes[uint64_t{link} * m_nLanes];
        UbPrefetch(&lane.ring[lane.ringHead]);
        UbPrefetch(&lane.ring[(lane.ringHead + lane.ringCount) & lane.RingMask()]);
    }

    /**
     * Bring into the cache what a packet touches that leaves for its endpoint, where its credit
     * goes back at once.
     * @param [in] linkIndex A link that is in the cache, with its first lane.
     */
    void PrefetchSink(uint32_t linkIndex) const
    {
        const Link& link = m_links[linkIndex];
        if (link.dstSwitch != UB_NONE)
        {
            return;
        }
        PrefetchRing(linkIndex);
        if ((link.flags & IS_SLOW_SINK) != 0)
        {
            UbPrefetch(&m_sinks[link.sink]);
        }
    }

    /**
     * The number of groups changed.
     * @param [in] nGroups How many there are now.
     */
    virtual void ResetPolicy(uint32_t nGroups) = 0;

    UbHugePages m_memory;                              //!< memory of the arrays
    UbEventQueue m_queue;                              //!< events
    std::pmr::vector<CacheLine> m_records{&m_memory};  //!< memory of what belongs to links
    UbStridedArray<Link> m_links;                      //!< links of the plane
    UbStridedArray<Lane> m_lanes;                      //!< [link][lane]
    UbStridedArray<Waiting> m_waiting;                 //!< [link][lane] packets that wait
    UbStridedArray<Departures> m_departures;           //!< by link
    std::pmr::vector<Queue> m_queues{&m_memory};       //!< queues that found no room in m_waiting
    std::pmr::vector<uint64_t> m_words{&m_memory};     //!< which queues of wide nodes hold packets
    std::array<std::vector<uint32_t>, 8> m_freeQueues; //!< unused ones, by log2 of their number
    std::vector<Switch> m_switches;                    //!< switches of the plane
    std::vector<int64_t> m_forwardPs;                  //!< by switch: head in to head out
    uint32_t m_nDead{0};                               //!< switches that are dead
    std::pmr::vector<Packet> m_packets{&m_memory};     //!< pool of packets
    std::vector<uint32_t> m_freePackets;               //!< unused ones, taken last in, first out
    std::pmr::vector<Sink> m_sinks{&m_memory};         //!< slow sinks
    std::pmr::vector<uint32_t> m_reverse{&m_memory};   //!< the other direction of each link's cable
    std::pmr::vector<int64_t> m_noCreditPs{&m_memory}; //!< by link: time waiting for credit
    std::pmr::vector<SourceQueue> m_sourceQueues{
        &m_memory}; //!< [link][lane], used where links leave endpoints
    std::vector<std::pair<uint32_t, uint32_t>> m_sent; //!< flow and bytes, by record
    std::vector<uint32_t> m_freeSent;                  //!< unused records
    std::vector<int64_t> m_deficit;          //!< [link][lane] bytes that the lane may still send
    UbArrived m_outbox;                      //!< deliveries for the endpoints
    std::vector<UbPacketAccount> m_accounts; //!< accounts of the packets, if kept
    Routes m_routes;                         //!< routes now
    std::vector<uint64_t> m_rates;           //!< rate of each rate class, bytes per second
    UbPlaneSettings m_settings;              //!< how links and switches work
    uint32_t m_nLanes;                       //!< virtual lanes of each port
    uint64_t m_seed;                         //!< seed of the hashes
    std::vector<std::pair<uint32_t, Candidate>> m_matching; //!< outputs being matched
    uint64_t m_packetHops{0};                               //!< packets times links crossed
    uint64_t m_eventCount{0};                               //!< events processed
    int64_t m_lastPs{0};                                    //!< time of the last event
    UbPlaneObserver* m_observer{nullptr};                   //!< who watches

  private:
    /**
     * Make room for what belongs to links.
     * @param [in] links The links.
     */
    void PlaceRecords(const std::vector<Link>& links);

    /**
     * @return A packet of the pool.
     */
    uint32_t Allocate();

    /**
     * Move the queues of a lane to where there is room for more, or for fewer.
     * @param [in,out] waiting What waits on the lane.
     * @param [in] nPlaces How many there should be room for.
     */
    void MoveQueues(Waiting& waiting, uint32_t nPlaces);

    /**
     * Double a ring of departures.
     * @param [in,out] departures The ring.
     */
    void GrowTimes(Departures& departures);

    /**
     * Put the first credit that may ride on packets before the cells in blocks of their own.
     * @param [in,out] lane A lane with such cells first, and such a credit.
     */
    static void OvertakeRest(Lane& lane);

    /**
     * Let a credit be on its way back.
     * @param [in,out] lane Its lane.
     * @param [in] credit The credit.
     */
    void PutCredit(Lane& lane, const Credit& credit);

    /**
     * Double a ring of credits.
     * @param [in,out] lane Its lane.
     */
    void GrowRing(Lane& lane);

    /**
     * @param [in] bytesPerS A rate.
     * @return Its class.
     */
    uint16_t RateClass(uint64_t bytesPerS);

    /**
     * Make tables of routes.
     * @param [in] arrays The fabric.
     * @return The tables.
     */
    Routes MakeRoutes(const UbFabricArrays& arrays) const;

    /**
     * Route by new tables from now on.
     * @param [in] routes The tables.
     */
    void Take(Routes&& routes);

    /**
     * Write the destination into a packet.
     * @param [in,out] packet The packet.
     * @param [in] endpoint The destination.
     */
    void SetDestination(Packet& packet, uint32_t endpoint) const;

    /**
     * @param [in] endpoint A source.
     * @param [in] packet A packet of it.
     * @param [in] nowPs The time.
     * @return The link by which the packet leaves its source, UB_NONE if none leads there.
     */
    uint32_t WayOut(uint32_t endpoint, const Packet& packet, int64_t nowPs);

    /**
     * Mark a packet, or not, since so much waits for its output.
     * @param [in,out] packet The packet.
     * @param [in] waitingBytes What waits.
     */
    void Mark(Packet& packet, uint64_t waitingBytes) const;

    /**
     * Let links that wait for credits know that a packet leaves on which those may ride.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link that the packet leaves on.
     * @param [in] nowPs The time: credits that have arrived by then have woken the links before.
     */
    template <UbFeatures F>
    void WakeAwaiting(uint32_t link, int64_t nowPs);

    /**
     * @param [in] link A link.
     * @return Whether this part of the plane runs it.
     */
    bool IsOwn(uint32_t link) const
    {
        return !m_part.ofNode || (*m_part.ofNode)[m_srcNode[link]] == m_part.number;
    }

    /// Find out which links cross from one part of the plane to another.
    void FindCrossings();

    /**
     * Put a packet that has arrived, or is lost, into the outbox.
     * @param [in] index The packet.
     * @param [in] tailPs When it was all there, or lost.
     * @param [in] headPs When its first byte was there, or it was lost.
     * @param [in] isLost Whether it is lost.
     */
    void HandOver(uint32_t index, int64_t tailPs, int64_t headPs, bool isLost);

    /**
     * Add up where the time of a packet went, and hand it to the endpoints.
     * @param [in] index The packet.
     * @param [in] tailPs When it was all there.
     */
    void CloseAccount(uint32_t index, int64_t tailPs);

    /**
     * Remember a change and when to carry it out.
     * @param [in] change The change.
     */
    void Schedule(Change&& change);

    /**
     * Find out how often a packet would have to be sent on a watched link.
     * @param [in] link The link.
     * @param [in,out] watch What the link knows of itself.
     * @param [in] packet The packet.
     * @param [in] nowPs The time.
     */
    void MakePlan(uint32_t link, Watch& watch, Packet& packet, int64_t nowPs);

    /**
     * Find what an output may send next.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The output.
     * @param [in] nowPs The time.
     * @return The candidate.
     */
    template <UbFeatures F>
    Candidate Find(uint32_t link, int64_t nowPs);

    /**
     * Take the candidate from its queue and send it.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The output.
     * @param [in] candidate What Find returned.
     * @param [in] nowPs The time.
     * @param [in] movesTurn Whether the round robin goes on from here.
     */
    template <UbFeatures F>
    void Send(uint32_t link, const Candidate& candidate, int64_t nowPs, bool movesTurn);

    /**
     * Note that an output has nothing that may go.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The output.
     * @param [in] candidate What Find returned.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void Stall(uint32_t link, const Candidate& candidate, int64_t nowPs);

    /**
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link A link.
     * @param [in] lane A lane of it.
     * @param [in] cells Cells wanted.
     * @param [in] nowPs The time.
     * @return Whether the lane's own and the shared part of the buffer hold them.
     */
    template <UbFeatures F>
    bool HasShared(uint32_t link, const Lane& lane, uint32_t cells, int64_t nowPs);

    /**
     * Count what waited in the port of a source, when a packet's start is known. Endpoints hand
     * packets over ahead of the plane's time, so what is in the queue depends on the windows of
     * the run; when packets were ready and when they left does not.
     * @param [in,out] queue The queue of the lane.
     * @param [in] readyPs When the packet was ready.
     * @param [in] startPs When it leaves.
     * @param [in] bytes Its bytes on the wire.
     */
    static void CountAtSource(SourceQueue& queue, int64_t readyPs, int64_t startPs, uint32_t bytes);

    /**
     * Remember that a packet leaves, for the credits that ride on it.
     * @tparam F Which mechanisms are compiled in.
     * @param [in] link The link.
     * @param [in] startPs When it leaves.
     * @param [in] nowPs The time.
     */
    template <UbFeatures F>
    void NoteDeparture(uint32_t link, int64_t startPs, int64_t nowPs);

    /**
     * Send a packet on a watched link, as often as bit errors ask for.
     * @param [in] link The link.
     * @param [in,out] packet The packet.
     * @param [in] nowPs The time.
     * @return When the transmission that gets through begins.
     */
    int64_t StartWatched(uint32_t link, Packet& packet, int64_t nowPs);

    /**
     * Find packets of links that are down a new way.
     * @param [in] nowPs The time.
     */
    void Reroute(int64_t nowPs);

    /**
     * Take all waiting packets off an output.
     * @param [in] link The output.
     * @return The packets, in the order of their queues.
     */
    std::vector<uint32_t> Drain(uint32_t link);

    /**
     * Watch a link from now on.
     * @param [in] link The link.
     * @return What it knows of itself.
     */
    Watch& WatchLink(uint32_t link);

    std::vector<std::unique_ptr<Credit[]>> m_moreRings; //!< rings that grew
    std::vector<uint32_t> m_linkNumber;                 //!< number of a link in the fabric
    std::vector<uint32_t> m_localLink;   //!< number in the plane of a link of the fabric
    std::vector<uint32_t> m_switchOf;    //!< number in the plane of a node that is a switch
    std::vector<uint32_t> m_srcNode;     //!< node that a link leaves
    uint32_t m_number;                   //!< number of the plane
    UbPlanePart m_part;                  //!< which part of the plane this is
    std::vector<uint32_t> m_across;      //!< by link, if it crosses: the part at its other end
    std::vector<Crossing> m_leaving;     //!< by part: what this one has for it
    std::vector<int64_t> m_capacity;     //!< cells of the buffer at the end of each link
    std::vector<int64_t> m_shared;       //!< of which no lane has for itself and none uses
    std::vector<Allowance> m_allowances; //!< by link, if switches grant windows
    std::unordered_map<uint32_t, Unacknowledged> m_unacknowledged; //!< of links that keep little
    std::vector<uint32_t> m_owed; //!< by link: control blocks not yet paid for
    std::vector<std::unique_ptr<int64_t[]>> m_moreTimes; //!< rings that grew
    std::vector<Queue> m_inLine;           //!< [link][lane] packets behind the first of an input
    std::vector<uint8_t> m_lineBusy;       //!< [link][lane] the first of the line is at an output
    std::vector<int64_t> m_stalledSincePs; //!< by link: start of its wait for credit, if STALLED
    std::unordered_map<uint32_t, Watch> m_watches;      //!< watched links
    std::vector<Change> m_changes;                      //!< what changes in the course of the run
    std::deque<Routes> m_comingRoutes;                  //!< routes to take on
    std::vector<std::pair<uint32_t, int64_t>> m_broken; //!< links that gave up, and when
    std::vector<size_t> m_accepted;                     //!< of which these have their match
    uint64_t m_packetsLost{0};                          //!< packets lost
    uint32_t m_inverseSpeedup{1U << 16};                //!< 2^16 over the speed-up of the crossbar
    bool m_mayBreak{false};      //!< there are links with bit errors, now or later
    bool m_sendsAhead{true};     //!< sources may send ahead of the plane's time
    uint64_t m_packetsInside{0}; //!< packets in the plane
};

} // namespace ns3

#endif // UB_PLANE_H
