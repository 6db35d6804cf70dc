// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport-queued.h"

#include "ns3/abort.h"
#include "ns3/uinteger.h"

#include <algorithm>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief The compact transport (CTP): messages that no end acknowledges.
 *
 * It has no packet numbers, no window and no transport response (UB base specification 2.0,
 * section 6.7.2) and leans on the links' retry. What dies with a link or a chip is sent again
 * by the transaction layer, one timeout after the loss. A work request is out when the egress has
 * taken its last packet. The only congestion control it allows is one by notices (section 6.6.2).
 */
class UbCompact : public UbQueuedTransport
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbCompact")
                .SetParent<UbQueuedTransport>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbCompact>()
                .AddAttribute("HeaderBytes",
                              "Headers of a packet: link 4 B, network 8 B, transport 1 B, "
                              "transaction 4 B, memory address 12 B, all compact (derived).",
                              UintegerValue(29),
                              MakeUintegerAccessor(&UbCompact::m_headerBytes),
                              MakeUintegerChecker<uint32_t>(0, 5000))
                .AddAttribute("Timeout",
                              "Time from the loss of a packet until the transaction layer sends "
                              "it again, and between two tries to find a way (assumed: longer "
                              "than the transport's 25.6 us; nothing is published).",
                              TimeValue(MicroSeconds(512)),
                              MakeTimeAccessor(&UbCompact::m_timeout),
                              MakeTimeChecker(PicoSeconds(1)));
        return tid;
    }

    bool Answers() const override
    {
        return m_congestion != nullptr;
    }

    uint32_t MaxHeaderBytes() const override
    {
        return std::max(m_headerBytes, m_noticeBytes);
    }

    void Account(const UbDelivery& delivery) override
    {
        const UbFlowRecord& flow = m_host->FlowRecord(delivery.flow);
        UbReaction reaction;
        reaction.delivery = delivery;
        const bool isNotice = delivery.tag >> TYPE_SHIFT == NOTICE;
        if (!isNotice && !delivery.isLost)
        {
            m_host->Deliver(delivery); // nothing is sent twice, so the order does not matter
        }
        const uint32_t endpoint = isNotice || delivery.isLost ? flow.src : flow.dst;
        int64_t afterPs =
            m_congestion ? m_host->AcknowledgePs(endpoint) : m_host->ReceivePs(endpoint);
        if (delivery.isLost && !isNotice)
        {
            afterPs = GetTimeoutPs();
        }
        m_host->Schedule(delivery.tailPs + afterPs, endpoint, reaction);
    }

    void React(uint32_t /* endpoint */, const UbReaction& reaction, int64_t nowPs) override
    {
        const UbDelivery& delivery = reaction.delivery;
        const uint32_t index = FindChannel(delivery.flow);
        --m_channels[index].underWay;
        if (delivery.tag >> TYPE_SHIFT == NOTICE)
        {
            if (!delivery.isLost)
            {
                m_congestion->OnNotice(m_channels[index].congestion, nowPs);
            }
        }
        else if (!delivery.isLost)
        {
            NoticeIfMarked(index, delivery, nowPs);
        }
        else if (delivery.tag >= GetRetryLimit())
        {
            m_host->Fail(delivery.flow, nowPs);
        }
        else
        {
            SendOn(index,
                   true,
                   delivery.flow,
                   delivery.tag + 1,
                   m_headerBytes,
                   delivery.payloadBytes,
                   nowPs);
        }
        CloseIfIdle(index);
        m_host->Release(delivery.flow);
    }

  protected:
    void DoAttach() override
    {
        NS_ABORT_MSG_IF(m_congestion && m_congestion->NeedsAcknowledgements(),
                        "ns3::UbCompact sends no acknowledgements, which "
                            << m_congestion->GetInstanceTypeId().GetName() << " needs");
    }

    uint32_t NextBytes(const Channel& channel) const override
    {
        return channel.work.IsEmpty() ? 0 : std::min(channel.work[0].left, PacketBytes());
    }

    void SendNext(uint32_t index, int64_t nowPs) override
    {
        const uint32_t bytes = NextBytes(m_channels[index]);
        const uint32_t flow = m_channels[index].work[0].flow;
        // the tag counts how often it was sent before
        const int64_t readyPs = SendOn(index, true, flow, 0, m_headerBytes, bytes, nowPs);
        Work& work = m_channels[index].work[0];
        work.left -= bytes;
        if (work.left == 0)
        {
            m_channels[index].work.Pop();
            m_host->Complete(flow, readyPs);
            m_host->Release(flow);
        }
    }
};

NS_OBJECT_ENSURE_REGISTERED(UbCompact);

} // namespace ns3
