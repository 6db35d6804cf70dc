// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport.h"

#include "ns3/uinteger.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Writes that nobody answers: an engine sends a packet and goes on.
 *
 * Nothing is kept of a packet that was sent, and UbEndpointProcess sends and counts packets of
 * this transport without asking it. A lost packet is sent again one timeout after it was lost,
 * by no engine; its tag says how often.
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
                              "Bytes of headers and checks of a packet.",
                              UintegerValue(64),
                              MakeUintegerAccessor(&UbPosted::m_headerBytes),
                              MakeUintegerChecker<uint32_t>(0, 5000))
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

    int64_t HandOver(const UbPiece& piece, int64_t nowPs) override
    {
        m_host->CountSent(piece.bytes);
        return SendPiece(piece.flow, piece.bytes, 0, nowPs);
    }

    void Account(const UbDelivery& delivery) override
    {
        if (!delivery.isLost)
        {
            m_host->Deliver(delivery);
            return;
        }
        UbReaction reaction;
        reaction.delivery = delivery;
        m_host->Schedule(delivery.tailPs + GetTimeoutPs(),
                         m_host->FlowRecord(delivery.flow).src,
                         reaction);
    }

    void React(uint32_t /* endpoint */, const UbReaction& reaction, int64_t nowPs) override
    {
        const UbDelivery& lost = reaction.delivery;
        if (lost.tag >= GetRetryLimit())
        {
            m_host->Fail(lost.flow, nowPs);
            return;
        }
        SendPiece(lost.flow, lost.payloadBytes, lost.tag + 1, nowPs);
    }

  private:
    /**
     * Put a packet into a port.
     * @param [in] flow The flow.
     * @param [in] bytes Its payload.
     * @param [in] attempt How often it was sent before.
     * @param [in] nowPs The time.
     * @return When the egress takes it.
     */
    int64_t SendPiece(uint32_t flow, uint32_t bytes, uint32_t attempt, int64_t nowPs)
    {
        const UbFlowRecord& record = m_host->FlowRecord(flow);
        UbInjection injection{};
        injection.flow = flow;
        injection.srcEndpoint = record.src;
        injection.dstEndpoint = record.dst;
        injection.tag = attempt;
        injection.payloadBytes = bytes;
        injection.wireBytes = m_host->WireBytes(m_network, m_headerBytes, bytes);
        injection.lane = record.lane;
        injection.congestion = UB_PACKET_WRITES;
        return m_host->Send(injection, m_network, nowPs);
    }
};

NS_OBJECT_ENSURE_REGISTERED(UbPosted);

} // namespace ns3
