// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_TRANSPORT_H
#define UB_TRANSPORT_H

#include "ub-congestion.h"
#include "ub-plane.h"
#include "ub-records.h"

#include "ns3/nstime.h"
#include "ns3/object.h"

#include <cstdint>

namespace ns3
{

/// Networks of a fabric: 0 UB, 1 RDMA, 2 VPC.
constexpr uint32_t UB_NETWORKS = 3;

/// What an acknowledgement says; see UbReliable.
struct UbAcknowledgement
{
    uint32_t expected{0};   //!< all packets before this number have arrived
    uint32_t marks{0};      //!< marked packets since the last acknowledgement
    uint32_t hint{0};       //!< window growth granted, in units of the congestion control
    uint64_t bitmap{0};     //!< bit i: packet `expected + 1 + i` has arrived
    bool isNegative{false}; //!< a packet is missing: go back to `expected`
    bool mayGrow{false};    //!< the network grants growth
};

/**
 * @ingroup ub-fabric
 * @brief Something that an endpoint does about an arrival, a latency later.
 *
 * Deliveries are handed over plane by plane, not in order of time; so whatever depends on order
 * happens in a reaction. Reactions of an endpoint at one instant are sorted by all they hold.
 */
struct UbReaction
{
    UbDelivery delivery{};   //!< what arrived, or was lost
    uint32_t kind{0};        //!< what to do, the transport's own
    UbAcknowledgement ack{}; //!< what it says, if it is an acknowledgement

    /**
     * @param [in] other Another reaction of the same endpoint at the same time.
     * @return Whether this one comes first.
     */
    bool operator<(const UbReaction& other) const;
};

/// A piece of a message that an issue engine hands over to a transport.
struct UbPiece
{
    uint32_t flow;     //!< the flow
    uint32_t endpoint; //!< the source
    uint32_t engine;   //!< the engine, a number within the endpoint
    uint32_t bytes;    //!< size
};

/**
 * @ingroup ub-fabric
 * @brief What a transport can ask of the endpoints; UbEndpointProcess, or a test.
 */
class UbTransportHost
{
  public:
    virtual ~UbTransportHost() = default;

    /**
     * @param [in] flow A flow at work.
     * @return Its record.
     */
    virtual UbFlowRecord& FlowRecord(uint32_t flow) = 0;

    /**
     * Put a packet into a port of its source.
     * @param [in,out] injection The packet: flow, ends, tag, sizes, lane and bits are set.
     * @param [in] network The network.
     * @param [in] nowPs The time.
     * @return When the egress of the source takes it.
     */
    virtual int64_t Send(UbInjection& injection, uint32_t network, int64_t nowPs) = 0;

    /**
     * @param [in] network The network.
     * @param [in] headerBytes The packet's headers.
     * @param [in] payloadBytes The packet's payload.
     * @return Bytes on the wire.
     */
    virtual uint32_t WireBytes(uint32_t network,
                               uint32_t headerBytes,
                               uint32_t payloadBytes) const = 0;

    /**
     * @param [in] endpoint An endpoint.
     * @return When its egress can take the next packet.
     */
    virtual int64_t EgressFreePs(uint32_t endpoint) const = 0;

    /**
     * @param [in] endpoint An endpoint.
     * @param [in] network A network.
     * @return Rate of its ports in the network, or of its egress if that is less.
     */
    virtual uint64_t PortBytesPerS(uint32_t endpoint, uint32_t network) const = 0;

    /**
     * @param [in] endpoint An endpoint.
     * @return Last byte at the port to seen by the rank.
     */
    virtual int64_t ReceivePs(uint32_t endpoint) const = 0;

    /**
     * @param [in] endpoint An endpoint.
     * @return Last byte at the port to the response put into a port, or to a response dealt with.
     */
    virtual int64_t AcknowledgePs(uint32_t endpoint) const = 0;

    /**
     * @param [in] endpoint An endpoint.
     * @return Last byte of a read request at the port to its data put into a port.
     */
    virtual int64_t MemoryReadPs(uint32_t endpoint) const = 0;

    /**
     * Have UbTransport::React called.
     * @param [in] timePs When; at least the lookahead after the arrival.
     * @param [in] endpoint Which endpoint reacts.
     * @param [in] reaction To what.
     */
    virtual void Schedule(int64_t timePs, uint32_t endpoint, const UbReaction& reaction) = 0;

    /**
     * Have UbTransport::Pump called.
     * @param [in] timePs When.
     * @param [in] endpoint For which endpoint.
     * @param [in] network The transport's network.
     */
    virtual void SchedulePump(int64_t timePs, uint32_t endpoint, uint32_t network) = 0;

    /**
     * Have UbTransport::Expire called, unless it is cancelled before.
     * @param [in] timePs When.
     * @param [in] network The transport's network.
     * @param [in] name Orders timers of one instant, and tells one from another.
     * @param [in] index What the transport finds it by.
     */
    virtual void SetTimer(int64_t timePs, uint32_t network, uint64_t name, uint32_t index) = 0;

    /**
     * Forget a timer.
     * @param [in] timePs As it was set.
     * @param [in] network As it was set.
     * @param [in] name As it was set.
     */
    virtual void CancelTimer(int64_t timePs, uint32_t network, uint64_t name) = 0;

    /**
     * Bytes of a flow have arrived where it goes, for the first time.
     * @param [in] delivery The packet.
     */
    virtual void Deliver(const UbDelivery& delivery) = 0;

    /**
     * Payload of a flow leaves for the first time.
     * @param [in] bytes The payload.
     */
    virtual void CountSent(uint32_t bytes) = 0;

    /**
     * A piece that an engine handed over is done with, as far as the source knows.
     * @param [in] flow The flow.
     * @param [in] nowPs The time.
     */
    virtual void Complete(uint32_t flow, int64_t nowPs) = 0;

    /**
     * Let an engine go on whose piece could not be taken.
     * @param [in] endpoint The endpoint.
     * @param [in] engine The engine, a number within the endpoint.
     * @param [in] nowPs The time.
     */
    virtual void Resume(uint32_t endpoint, uint32_t engine, int64_t nowPs) = 0;

    /**
     * Keep a flow's record, though the flow may be finished: a packet refers to it.
     * @param [in] flow The flow.
     */
    virtual void Hold(uint32_t flow) = 0;

    /**
     * Undo one Hold().
     * @param [in] flow The flow.
     */
    virtual void Release(uint32_t flow) = 0;

    /**
     * Give up: a packet cannot be brought to its destination. Only the first call counts.
     * @param [in] flow The flow.
     * @param [in] nowPs The time.
     */
    virtual void Fail(uint32_t flow, int64_t nowPs) = 0;
};

/**
 * @ingroup ub-fabric
 * @brief How the endpoints of a network bring messages to each other.
 *
 * An issue engine cuts a message into pieces of PieceBytes() and hands them over one by one.
 * Either it streams each piece at its rate (STREAM: cores that write or read remote memory), or
 * it only describes it, at its issue cost, and a controller does the rest (DESCRIBE). The
 * transport makes packets of at most PacketBytes() of them, answers what arrives, and repeats
 * what is lost. Nothing that it knows of a loss may be used but to tell what a timer would do.
 *
 * A transport is picked by an attribute of UbFabric, such as
 * `ns3::UbLoadStore[WindowRequests=32|RequestBytes=256]`. A new one is a class in a file of its
 * own; see ub-transport-load-store.cc.
 */
class UbTransport : public Object
{
  public:
    /// How an issue engine works for it.
    enum Style
    {
        STREAM,   //!< an engine moves the bytes, each packet at its rate
        DESCRIBE, //!< an engine describes pieces, each at its issue cost
    };

    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /**
     * Make it ready; once.
     * @param [in] host The endpoints.
     * @param [in] network The network.
     * @param [in] payloadBytes Most payload of a packet.
     * @param [in] congestion Congestion control, or nullptr for none.
     */
    void Attach(UbTransportHost& host,
                uint32_t network,
                uint32_t payloadBytes,
                Ptr<UbCongestionControl> congestion);

    /// @return Bytes of headers of a packet with payload.
    uint32_t GetHeaderBytes() const
    {
        return m_headerBytes;
    }

    /// @return How long a source waits for what does not come, or for a way.
    int64_t GetTimeoutPs() const
    {
        return m_timeout.GetTimeStep();
    }

    /// @return How often a source repeats a packet before it gives up.
    uint32_t GetRetryLimit() const
    {
        return m_retryLimit;
    }

    /// @return Most payload of a packet.
    virtual uint32_t PacketBytes() const
    {
        return m_payloadBytes;
    }

    /// @return Most bytes that an engine hands over at a time.
    virtual uint32_t PieceBytes() const
    {
        return PacketBytes();
    }

    /// @return Most bytes that an engine asks for at a time, if flows may read.
    virtual uint32_t ReadBytes() const
    {
        return PieceBytes();
    }

    /// @return How an issue engine works for it.
    virtual Style GetStyle() const
    {
        return STREAM;
    }

    /// @return Whether nobody answers a write and nothing is kept: packets take the short way.
    virtual bool IsPosted() const
    {
        return false;
    }

    /// @return Whether flows may read.
    virtual bool CanRead() const
    {
        return false;
    }

    /// @return Whether it answers packets, and so needs an acknowledge latency.
    virtual bool Answers() const
    {
        return false;
    }

    /// @return Most headers of any of its packets, answers included.
    virtual uint32_t MaxHeaderBytes() const
    {
        return m_headerBytes;
    }

    /**
     * Take a piece of a message.
     * @param [in] piece The piece.
     * @param [in] nowPs The time.
     * @return When the engine may go on; UB_NEVER if the piece must be handed over again after
     * UbTransportHost::Resume.
     */
    virtual int64_t HandOver(const UbPiece& piece, int64_t nowPs) = 0;

    /**
     * A packet reached an endpoint, or was lost.
     * @param [in] delivery The packet.
     */
    virtual void Account(const UbDelivery& delivery) = 0;

    /**
     * Do what was scheduled.
     * @param [in] endpoint The endpoint.
     * @param [in] reaction What was scheduled.
     * @param [in] nowPs The time.
     */
    virtual void React(uint32_t endpoint, const UbReaction& reaction, int64_t nowPs) = 0;

    /**
     * Send a packet of an endpoint whose turn it is.
     * @param [in] endpoint The endpoint.
     * @param [in] nowPs The time.
     */
    virtual void Pump(uint32_t endpoint, int64_t nowPs);

    /**
     * A timer ran out.
     * @param [in] name As it was set.
     * @param [in] index As it was set.
     * @param [in] nowPs The time.
     */
    virtual void Expire(uint64_t name, uint32_t index, int64_t nowPs);

  protected:
    /// Called at the end of Attach().
    virtual void DoAttach();

    UbTransportHost* m_host{nullptr};      //!< the endpoints
    uint32_t m_network{0};                 //!< the network
    uint32_t m_payloadBytes{0};            //!< most payload of a packet of the fabric
    Ptr<UbCongestionControl> m_congestion; //!< congestion control, or nullptr
    uint32_t m_headerBytes{0};             //!< attribute of each transport
    Time m_timeout;                        //!< attribute of each transport
    uint32_t m_retryLimit{0};              //!< attribute
};

} // namespace ns3

#endif // UB_TRANSPORT_H
