// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_H
#define UB_PLANE_H

#include "ub-event-queue.h"
#include "ub-fabric-arrays.h"

#include <memory>
#include <string>
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

/// What a link did in a run.
struct UbLinkStats
{
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
 */
class UbPlane
{
  public:
    /**
     * @param [in] arrays The fabric.
     * @param [in] plane Which plane of it.
     * @param [in] nLanes Virtual lanes of each port.
     * @param [in] seed Seed of the hashes.
     */
    UbPlane(const UbFabricArrays& arrays, uint32_t plane, uint32_t nLanes, uint64_t seed);
    virtual ~UbPlane() = default;

    UbPlane(const UbPlane&) = delete;
    UbPlane& operator=(const UbPlane&) = delete;

    /**
     * Put a packet into the port of its source endpoint.
     * @param [in] injection The packet.
     */
    void Inject(const UbInjection& injection);

    /**
     * Process all events before a time.
     * @param [in] limitPs The time.
     */
    virtual void RunBefore(int64_t limitPs) = 0;

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
    std::vector<UbDelivery>& Outbox()
    {
        return m_outbox;
    }

    /**
     * @param [in] endpoint A node number.
     * @return Whether the plane's switches reach it.
     */
    bool Reaches(uint32_t endpoint) const
    {
        return m_endpointClass[endpoint] >= 0;
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
        HEAD = 0,    //!< a packet may leave the switch that its link enters
        PORT = 1,    //!< look at a link's waiting packets
        DELIVER = 2, //!< last byte at the endpoint; only while somebody listens
        SENT = 3,    //!< a packet begins to leave; only while somebody listens
    };

    static constexpr uint32_t KIND_SHIFT = 30; //!< kind above, link below
    static constexpr uint8_t ORDERED = 128;    //!< bit of a packet that keeps to the path of its hash

    /// A packet; one cache line. Sizes are 16 bits wide: UbFabric checks them.
    struct alignas(64) Packet
    {
        int64_t readyPs;       //!< not sent before
        int64_t waitedPs;      //!< time spent waiting in ports so far
        uint32_t serialisePs;  //!< time on a link of class rateClass
        uint32_t next;         //!< next packet of the same queue
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
        uint8_t lane;          //!< virtual lane
        uint8_t hops;          //!< links crossed
        uint8_t bits;          //!< congestion bits, and ORDERED
        uint8_t hint;          //!< window growth asked for
    };

    static_assert(sizeof(Packet) == 64, "a packet is one cache line");

    /// A link: an output port at its start, an input buffer at its end. One cache line.
    struct alignas(64) Link
    {
        int64_t busyUntilPs{0};      //!< end of the transmission under way
        int64_t wakePs{UB_NEVER};    //!< time of the pending PORT event
        int64_t stalledSincePs{-1};  //!< start of a wait for credit, -1 if none
        uint64_t bytes{0};           //!< bytes sent
        uint64_t packets{0};         //!< packets sent
        uint32_t nWaiting{0};        //!< packets waiting, all lanes
        uint32_t dstSwitch{UB_NONE}; //!< switch at the end, UB_NONE for an endpoint
        uint16_t dstInput{0};        //!< number among the inputs of that switch
        uint16_t nInputs{1};         //!< inputs of the node that it leaves
        uint16_t rateClass{0};       //!< which rate
        uint8_t lastLane{0};         //!< lane served last
    };

    static_assert(sizeof(Link) == 64, "a link is one cache line");

    /// A credit on its way back.
    struct Credit
    {
        int64_t timePs; //!< when the start of the link knows
        uint32_t bytes; //!< how much
    };

    /// A virtual lane of a link. One cache line.
    struct alignas(64) Lane
    {
        int64_t credit{0};           //!< bytes free in the buffer at the end, as known here
        int64_t delayPs{0};          //!< propagation on the link, either way
        Credit* ring{nullptr};       //!< credits on their way back, by time
        uint32_t ringMask{0};        //!< its length, a power of two, less one
        uint32_t ringHead{0};        //!< first credit on its way back
        uint32_t ringCount{0};       //!< credits on their way back
        uint32_t waitingBytes{0};    //!< bytes waiting to leave on the lane
        uint32_t maxWaitingBytes{0}; //!< most bytes that waited
        uint32_t nWaiting{0};        //!< packets waiting to leave on the lane
        uint32_t firstQueue{0};      //!< first queue (input) of this lane
        uint32_t firstWord{0};       //!< first bitmap word of this lane
        uint16_t lastInput{0};       //!< input served last
        bool needsCredit{false};     //!< wake the link when a credit is on its way
    };

    static_assert(sizeof(Lane) == 64, "a lane is one cache line");

    /// A queue of packets from one input to one output on one lane.
    struct Queue
    {
        uint32_t head{UB_NONE}; //!< first packet
        uint32_t tail{UB_NONE}; //!< last packet
    };

    /// A packet that waited at its source.
    struct Waiting
    {
        int64_t startPs; //!< when it left
        uint32_t bytes;  //!< bytes on the wire
    };

    /// What waited at a source, found out afterwards; see CountAtSource.
    struct SourceQueue
    {
        std::vector<Waiting> waiting; //!< packets that wait when the last one counted was ready
        size_t first{0};              //!< first of them
        uint64_t bytes{0};            //!< their bytes
        uint64_t maxBytes{0};         //!< most bytes that waited
    };

    /// A switch.
    struct Switch
    {
        uint64_t row;             //!< start of its row of the table
        int64_t forwardLatencyPs; //!< head in to head out
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
     * Give a packet back to the pool.
     * @param [in] index The packet.
     */
    void Free(uint32_t index)
    {
        m_packets[index].next = m_freePacket;
        m_freePacket = index;
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
     * Make sure that a link is looked at, at a time or before.
     * @param [in] link The link.
     * @param [in] timePs The time.
     */
    void Wake(uint32_t link, int64_t timePs)
    {
        if (timePs < m_links[link].wakePs)
        {
            m_links[link].wakePs = timePs;
            m_queue.Push(timePs, (PORT << KIND_SHIFT) | link, 0);
        }
    }

    /**
     * Send a packet's worth of credit back to the start of a link.
     * @param [in] link The link.
     * @param [in,out] lane The lane.
     * @param [in] bytes The bytes.
     * @param [in] arrivalPs When the start of the link knows.
     * @param [in] nowPs The time.
     */
    void ReturnCredit(uint32_t link, Lane& lane, uint32_t bytes, int64_t arrivalPs, int64_t nowPs);

    /**
     * Take in the credits that have arrived.
     * @param [in,out] lane The lane.
     * @param [in] nowPs The time.
     */
    static void CollectCredits(Lane& lane, int64_t nowPs);

    /**
     * @param [in,out] lane The lane.
     * @param [in] bytes Bytes wanted.
     * @param [in] nowPs The time.
     * @return Whether the lane has credit for them.
     */
    static bool HasCredit(Lane& lane, uint32_t bytes, int64_t nowPs)
    {
        if (lane.credit >= bytes)
        {
            return true;
        }
        CollectCredits(lane, nowPs);
        return lane.credit >= bytes;
    }

    /**
     * Append a packet to a queue of an output.
     * @param [in] link The output.
     * @param [in] input The input it came from.
     * @param [in] index The packet.
     */
    void Enqueue(uint32_t link, uint32_t input, uint32_t index);

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
     * Find an input that has a packet waiting; there must be one.
     * @param [in] bits Which inputs have.
     * @param [in] words Words of bits.
     * @param [in] from Where to begin; the search goes round.
     * @return The input.
     */
    static uint32_t NextInput(const uint64_t* bits, uint32_t words, uint32_t from);

    /**
     * Serve an output: send the next packet that may go, or arrange to be woken.
     * @param [in] link The output.
     * @param [in] nowPs The time.
     */
    void Serve(uint32_t link, int64_t nowPs);

    /**
     * Put a packet on a link.
     * @param [in] link The link.
     * @param [in] index The packet.
     * @param [in] nowPs The time.
     */
    void Transmit(uint32_t link, uint32_t index, int64_t nowPs);

    /**
     * Keep what the observer is to be told of a packet that leaves.
     * @param [in] packet The packet.
     * @return Number of the record.
     */
    uint32_t SentRecord(const Packet& packet);

    /**
     * Tell the observer of a packet that leaves.
     * @param [in] link The link.
     * @param [in] record What SentRecord returned.
     * @param [in] nowPs The time.
     */
    void Sent(uint32_t link, uint32_t record, int64_t nowPs);

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
     * Choose among the links of a group at a source.
     * @param [in] group The group.
     * @param [in] packet The packet.
     * @return The link.
     */
    virtual uint32_t ChooseAtSource(uint32_t group, const Packet& packet) = 0;

    UbEventQueue m_queue;                    //!< events
    std::vector<Link> m_links;               //!< links of the plane
    std::vector<Lane> m_lanes;               //!< [link][lane]
    std::vector<Queue> m_queues;             //!< packets waiting, by output, lane and input
    std::vector<uint64_t> m_words;           //!< which queues hold packets
    std::vector<Switch> m_switches;          //!< switches of the plane
    std::vector<Packet> m_packets;           //!< pool of packets
    std::vector<int64_t> m_noCreditPs;       //!< by link: time waiting for credit
    std::vector<SourceQueue> m_sourceQueues; //!< [link][lane], used where links leave endpoints
    std::vector<std::pair<uint32_t, uint32_t>> m_sent; //!< flow and bytes, by record
    std::vector<uint32_t> m_freeSent;                  //!< unused records
    std::vector<UbDelivery> m_outbox;                  //!< deliveries for the endpoints
    std::vector<int32_t> m_table;                      //!< rows of groups by destination class
    std::vector<int32_t> m_local;                      //!< groups of the last hop
    std::vector<uint32_t> m_groupStart;                //!< start of each group in m_groupLink
    std::vector<uint32_t> m_groupLink;                 //!< links of the groups
    std::vector<uint64_t> m_rates;        //!< rate of each rate class, bytes per second
    uint32_t m_nLanes;                    //!< virtual lanes of each port
    uint64_t m_seed;                      //!< seed of the hashes
    uint64_t m_packetHops{0};             //!< packets times links crossed
    uint64_t m_eventCount{0};             //!< events processed
    int64_t m_lastPs{0};                  //!< time of the last event
    UbPlaneObserver* m_observer{nullptr}; //!< who watches

  private:
    /**
     * @return A packet of the pool.
     */
    uint32_t Allocate();

    /**
     * Double a ring of credits.
     * @param [in,out] lane Its lane.
     */
    void GrowRing(Lane& lane);

    std::vector<Credit> m_firstRings;                   //!< rings as they are at first, all lanes
    std::vector<std::unique_ptr<Credit[]>> m_moreRings; //!< rings that grew
    std::vector<uint32_t> m_linkNumber;                 //!< number of a link in the fabric
    std::vector<uint32_t> m_directLocal;  //!< number in the plane of a direct link, by link
    std::vector<int64_t> m_capacity;      //!< credit of a lane of each link when idle
    std::vector<int32_t> m_endpointClass; //!< class of each node, -1: not attached
    std::vector<int32_t> m_endpointSlot;  //!< slot of each node
    std::vector<int64_t> m_endpointOut;   //!< way out of each node: group or row
    uint32_t m_freePacket{UB_NONE};       //!< free packets
    uint64_t m_packetsInside{0};          //!< packets in the plane
};

} // namespace ns3

#endif // UB_PLANE_H
