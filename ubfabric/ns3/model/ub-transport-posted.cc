// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport.h"

#include "ns3/uinteger.h"

#include <algorithm>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Writes that nobody answers, and reads without a window: an engine goes on at once.
 *
 * Nothing is kept of a packet that was sent, and UbEndpointProcess sends and counts packets that
 * write without asking this transport. A request for data asks for up to a work request, and is
 * answered with packets of data one memory read latency after it is in. A packet that is lost is
 * sent again one timeout after it was lost, by no engine; for data that are lost a request is sent
 * that asks for them alone. The tag says how often.
 */
class UbPosted : public UbTransport
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbPosted")
                .SetParent<UbTransport>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbPosted>()
                .AddAttribute("HeaderBytes",
                              "Bytes of headers and checks of a packet; a request for data has "
                              "nothing else.",
                              UintegerValue(64),
                              MakeUintegerAccessor(&UbPosted::m_headerBytes),
                              MakeUintegerChecker<uint32_t>(0, 5000))
                .AddAttribute("WorkRequestBytes",
                              "Most bytes that a request for data asks for; 0: flows cannot read.",
                              UintegerValue(0),
                              MakeUintegerAccessor(&UbPosted::m_readBytes),
                              MakeUintegerChecker<uint32_t>(0, Tag::MOST_BYTES))
                .AddAttribute("Timeout",
                              "Time from the loss of a packet until it is sent again, and between "
                              "two tries to find a way (assumed: nothing is published).",
                              TimeValue(MicroSeconds(128)),
                              MakeTimeAccessor(&UbPosted::m_timeout),
                              MakeTimeChecker(PicoSeconds(1)));
        return tid;
    }

    bool IsPosted() const override
    {
        return true;
    }

    bool CanRead() const override
    {
        return m_readBytes > 0;
    }

    uint32_t ReadBytes() const override
    {
        return m_readBytes;
    }

    int64_t HandOver(const UbPiece& piece, int64_t nowPs) override
    {
        m_host->CountSent(piece.bytes);
        const bool isRead = (m_host->FlowRecord(piece.flow).operation & UB_READ) != 0;
        return Send(piece.flow, {isRead, 0, piece.bytes}, nowPs);
    }

    void Account(const UbDelivery& delivery) override
    {
        const UbFlowRecord& flow = m_host->FlowRecord(delivery.flow);
        UbReaction reaction;
        reaction.delivery = delivery;
        if (delivery.isLost)
        {
            reaction.kind = REPEAT;
            m_host->Schedule(delivery.tailPs + GetTimeoutPs(), flow.src, reaction);
        }
        else if (Tag(delivery.tag).isRequest)
        {
            reaction.kind = ANSWER;
            m_host->Schedule(delivery.tailPs + m_host->MemoryReadPs(flow.dst), flow.dst, reaction);
        }
        else
        {
            m_host->Deliver(delivery);
        }
    }

    void React(uint32_t /* endpoint */, const UbReaction& reaction, int64_t nowPs) override
    {
        const UbDelivery& packet = reaction.delivery;
        const Tag tag(packet.tag);
        if (reaction.kind == ANSWER)
        {
            for (uint32_t left = tag.bytes; left > 0;)
            {
                const uint32_t bytes = std::min(left, PacketBytes());
                Send(packet.flow, {false, tag.attempts, bytes}, nowPs);
                left -= bytes;
            }
            return;
        }
        if (tag.attempts >= GetRetryLimit())
        {
            m_host->Fail(packet.flow, nowPs);
            return;
        }
        const bool isRead = (m_host->FlowRecord(packet.flow).operation & UB_READ) != 0;
        const uint32_t bytes = tag.isRequest ? tag.bytes : packet.payloadBytes;
        Send(packet.flow, {isRead, tag.attempts + 1, bytes}, nowPs);
    }

  private:
    /// What a reaction is about.
    enum Kind : uint32_t
    {
        ANSWER = 0, //!< a request is answered
        REPEAT = 1, //!< what was lost is sent, or asked for, again
    };

    /// What a packet carries besides its payload.
    struct Tag
    {
        static constexpr uint32_t MOST_BYTES = (1U << 26) - 1; //!< that a request asks for

        bool isRequest;    //!< asks for data
        uint32_t attempts; //!< how often it was sent before
        uint32_t bytes;    //!< of payload, or asked for

        /**
         * @param [in] request Whether it asks for data.
         * @param [in] before How often it was sent before.
         * @param [in] size Bytes of payload, or asked for.
         */
        Tag(bool request, uint32_t before, uint32_t size)
            : isRequest(request),
              attempts(before),
              bytes(size)
        {
        }

        /// @param [in] packed As it travels.
        explicit Tag(uint32_t packed)
            : isRequest((packed & 1) != 0),
              attempts((packed >> 1) & 31),
              bytes(packed >> 6)
        {
        }

        /// @return As it travels.
        uint32_t Pack() const
        {
            return (isRequest ? 1U : 0U) | (attempts << 1) | (bytes << 6);
        }
    };

    /**
     * Put a packet into a port.
     * @param [in] flow The flow.
     * @param [in] tag What it is.
     * @param [in] nowPs The time.
     * @return When the egress of its sender takes it.
     */
    int64_t Send(uint32_t flow, const Tag& tag, int64_t nowPs)
    {
        const UbFlowRecord& record = m_host->FlowRecord(flow);
        const bool isRead = (record.operation & UB_READ) != 0;
        const bool isAnswer = isRead && !tag.isRequest;
        UbInjection injection{};
        injection.flow = flow;
        injection.srcEndpoint = isAnswer ? record.dst : record.src;
        injection.dstEndpoint = isAnswer ? record.src : record.dst;
        injection.tag = tag.Pack();
        injection.payloadBytes = tag.isRequest ? 0 : tag.bytes;
        injection.wireBytes = m_host->WireBytes(m_network, m_headerBytes, injection.payloadBytes);
        injection.lane = record.lane;
        injection.congestion = isRead ? 0 : UB_PACKET_WRITES;
        return m_host->Send(injection, m_network, nowPs);
    }

    uint32_t m_readBytes{0}; //!< attribute
};

NS_OBJECT_ENSURE_REGISTERED(UbPosted);

} // namespace ns3
