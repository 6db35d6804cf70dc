// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport-queued.h"

#include "ns3/enum.h"
#include "ns3/uinteger.h"

#include <algorithm>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief The reliable transport (RTP): numbered packets, a window, acknowledgements.
 *
 * After the UB base specification 2.0, sections 6.4 to 6.7. The receiver takes packets out of
 * order within its reorder window and drops what lies beyond it and what it has already; it
 * acknowledges every so many packets, or a delay after the first of them. The source repeats
 *  - after a timeout that grows with each one in a row: with GO_BACK_N all packets that are not
 *    acknowledged, with SELECTIVE those of them that the receiver did not name as arrived;
 *  - with Ordered, where a gap can only be a loss, at once: with GO_BACK_N the receiver takes
 *    nothing out of order and asks to go back, once a gap; with SELECTIVE it names what arrived
 *    and the source repeats what is missing before that, once. Sprayed packets overtake each
 *    other, so the specification allows no fast retransmission then.
 *
 * An acknowledgement names the 64 packets after the first that is missing. A work request is out
 * when its last packet and all before it are acknowledged. Timers run whether something is lost
 * or not: a round trip longer than the timeout repeats packets that will arrive, as it would on
 * the machine, and the receiver drops them.
 */
class UbReliable : public UbQueuedTransport
{
  public:
    /// What is repeated.
    enum Retransmission
    {
        SELECTIVE, //!< what is missing
        GO_BACK_N, //!< everything from the first packet that is missing
    };

    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbReliable")
                .SetParent<UbQueuedTransport>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbReliable>()
                .AddAttribute("HeaderBytes",
                              "Headers of a packet: link 4 B, network 12 B, transport 16 B, "
                              "transaction 8 B, memory address 16 B, all full (derived).",
                              UintegerValue(56),
                              MakeUintegerAccessor(&UbReliable::m_headerBytes),
                              MakeUintegerChecker<uint32_t>(0, 5000))
                .AddAttribute("AcknowledgementBytes",
                              "Size of an acknowledgement: link 4 B, network 12 B, transport "
                              "16 B, acknowledgement 8 B, congestion extension 8 B (derived).",
                              UintegerValue(48),
                              MakeUintegerAccessor(&UbReliable::m_ackBytes),
                              MakeUintegerChecker<uint32_t>(1, 5000))
                .AddAttribute("WindowBytes",
                              "Most payload from a source to a destination that is not "
                              "acknowledged (assumed: 196 GB/s times 2.1 us is 412 kB).",
                              UintegerValue(524288),
                              MakeUintegerAccessor(&UbReliable::m_windowBytes),
                              MakeUintegerChecker<uint64_t>(1))
                .AddAttribute("ReorderWindow",
                              "Packets from the first missing one on that the receiver takes out "
                              "of order (UB base specification 2.0: 128 to 2048; ns-3-UB: 2048); "
                              "0: it takes packets in order only.",
                              UintegerValue(2048),
                              MakeUintegerAccessor(&UbReliable::m_reorderWindow),
                              MakeUintegerChecker<uint32_t>(0, 1U << 20))
                .AddAttribute("AcknowledgeEvery",
                              "Packets accepted for each acknowledgement (assumed: the "
                              "specification leaves it open).",
                              UintegerValue(4),
                              MakeUintegerAccessor(&UbReliable::m_ackEvery),
                              MakeUintegerChecker<uint32_t>(1))
                .AddAttribute("AcknowledgeDelay",
                              "Longest time from an accepted packet to its acknowledgement "
                              "(assumed).",
                              TimeValue(NanoSeconds(500)),
                              MakeTimeAccessor(&UbReliable::m_ackDelay),
                              MakeTimeChecker(PicoSeconds(1)))
                .AddAttribute("Retransmission",
                              "What is repeated: Selective or GoBackN.",
                              EnumValue(SELECTIVE),
                              MakeEnumAccessor<Retransmission>(&UbReliable::m_retransmission),
                              MakeEnumChecker(SELECTIVE, "Selective", GO_BACK_N, "GoBackN"))
                .AddAttribute("Timeout",
                              "Time without an acknowledgement until packets are repeated, and "
                              "between two tries to find a way (ns-3-UB: 25.6 us).",
                              TimeValue(NanoSeconds(25600)),
                              MakeTimeAccessor(&UbReliable::m_timeout),
                              MakeTimeChecker(PicoSeconds(1)))
                .AddAttribute("BackOff",
                              "Factor of the timeout from one to the next in a row (UB base "
                              "specification 2.0, table 6-8: 8).",
                              UintegerValue(8),
                              MakeUintegerAccessor(&UbReliable::m_backOff),
                              MakeUintegerChecker<uint32_t>(1, 64));
        return tid;
    }

    bool Answers() const override
    {
        return true;
    }

    uint32_t MaxHeaderBytes() const override
    {
        return std::max({m_headerBytes, m_ackBytes, m_noticeBytes});
    }

    void Account(const UbDelivery& delivery) override
    {
        const UbFlowRecord& flow = m_host->FlowRecord(delivery.flow);
        const bool isData = delivery.tag >> TYPE_SHIFT == DATA;
        UbReaction reaction;
        reaction.delivery = delivery;
        if (delivery.tag >> TYPE_SHIFT == ACKNOWLEDGEMENT)
        {
            reaction.ack = m_acks[delivery.tag & NUMBER_MASK];
        }
        const uint32_t endpoint = isData ? flow.dst : flow.src;
        m_host->Schedule(delivery.tailPs + m_host->AcknowledgePs(endpoint), endpoint, reaction);
    }

    void React(uint32_t /* endpoint */, const UbReaction& reaction, int64_t nowPs) override
    {
        const UbDelivery& delivery = reaction.delivery;
        const uint32_t index = FindChannel(delivery.flow);
        --m_channels[index].underWay;
        switch (delivery.tag >> TYPE_SHIFT)
        {
        case ACKNOWLEDGEMENT:
            m_freeAcks.push_back(delivery.tag & NUMBER_MASK);
            if (!delivery.isLost)
            {
                Acknowledged(index, reaction.ack, nowPs);
            }
            break;
        case NOTICE:
            if (!delivery.isLost)
            {
                m_congestion->OnNotice(m_channels[index].congestion, nowPs);
            }
            break;
        default:
            if (!delivery.isLost) // else nobody knows; a timer will tell
            {
                Received(index, delivery, nowPs);
            }
        }
        CloseIfIdle(index);
        m_host->Release(delivery.flow);
    }

  protected:
    uint32_t NextBytes(const Channel& channel) const override
    {
        uint32_t bytes = 0;
        if (channel.nToRepeat > 0)
        {
            bytes = channel.outstanding[FirstToRepeat(channel)].bytes;
        }
        else if (!channel.work.IsEmpty())
        {
            bytes = std::min(channel.work[0].left, PacketBytes());
        }
        const uint64_t window =
            m_congestion ? std::min(m_windowBytes, m_congestion->WindowBytes(channel.congestion))
                         : m_windowBytes;
        // one packet may always be under way, or a small window would stop the channel for good
        return channel.bytesUnderWay > 0 && channel.bytesUnderWay + bytes > window ? 0 : bytes;
    }

    void SendNext(uint32_t index, int64_t nowPs) override
    {
        Channel& channel = m_channels[index];
        uint32_t at;
        if (channel.nToRepeat > 0)
        {
            at = FirstToRepeat(channel);
            Outstanding& packet = channel.outstanding[at];
            packet.isToRepeat = false;
            packet.isRepeated = true;
            --channel.nToRepeat;
        }
        else
        {
            at = channel.outstanding.Size();
            Work& work = channel.work[0];
            const uint32_t bytes = std::min(work.left, PacketBytes());
            work.left -= bytes;
            channel.outstanding.Push(
                {work.flow, bytes, 0, false, false, false, false, work.left == 0});
            if (work.left == 0)
            {
                channel.work.Pop();
            }
        }
        Outstanding& packet = channel.outstanding[at];
        packet.isUnderWay = true;
        channel.bytesUnderWay += packet.bytes;
        packet.sentPs = SendOn(index,
                               true,
                               packet.flow,
                               (channel.first + at) & NUMBER_MASK,
                               m_headerBytes,
                               packet.bytes,
                               nowPs);
        if (channel.timerPs == 0)
        {
            Arm(index, packet.sentPs);
        }
    }

    void ChannelTimer(TimerKind kind, uint32_t index, int64_t nowPs) override
    {
        Channel& channel = m_channels[index];
        if (kind == ACKNOWLEDGE)
        {
            channel.ackTimerPs = 0;
            Acknowledge(index, channel.ackFlow, false, nowPs);
            return;
        }
        channel.timerPs = 0;
        if (nowPs < channel.deadlinePs)
        {
            SetRetransmit(index, channel.deadlinePs);
            return;
        }
        if (channel.tries >= GetRetryLimit())
        {
            m_host->Fail(channel.outstanding[0].flow, nowPs);
            return;
        }
        ++channel.tries;
        RepeatAll(channel);
        channel.repeatedUpTo = channel.first + channel.outstanding.Size();
        Arm(index, nowPs);
        Wake(index, nowPs);
    }

  private:
    static constexpr uint32_t NUMBER_MASK = (1U << TYPE_SHIFT) - 1; //!< number of a packet

    /**
     * @param [in] number Number of a packet as it travels.
     * @param [in] reference Number of a packet near it.
     * @return How far the first is after the second.
     */
    static int32_t Distance(uint32_t number, uint32_t reference)
    {
        constexpr uint32_t spare = 32 - TYPE_SHIFT;
        return static_cast<int32_t>((number - reference) << spare) >> spare;
    }

    /**
     * Mark a packet to be sent again, unless it arrived or is marked.
     * @param [in,out] channel Its channel.
     * @param [in,out] packet The packet.
     */
    static void Repeat(Channel& channel, Outstanding& packet)
    {
        if (packet.isAcknowledged || packet.isToRepeat)
        {
            return;
        }
        packet.isToRepeat = true;
        ++channel.nToRepeat;
        TakeBack(channel, packet);
    }

    /// Mark all packets of a channel that did not arrive. @param [in,out] channel The channel.
    static void RepeatAll(Channel& channel)
    {
        for (uint32_t at = 0; at < channel.outstanding.Size(); ++at)
        {
            Repeat(channel, channel.outstanding[at]);
        }
    }

    /**
     * @param [in] channel A channel with packets to be sent again.
     * @return Place of the first of them.
     */
    static uint32_t FirstToRepeat(const Channel& channel)
    {
        uint32_t at = 0;
        while (!channel.outstanding[at].isToRepeat)
        {
            ++at;
        }
        return at;
    }

    /**
     * A packet is no longer under way, as far as the source knows.
     * @param [in,out] channel Its channel.
     * @param [in,out] packet The packet.
     */
    static void TakeBack(Channel& channel, Outstanding& packet)
    {
        if (packet.isUnderWay)
        {
            packet.isUnderWay = false;
            channel.bytesUnderWay -= packet.bytes;
        }
    }

    /**
     * Begin to wait for an acknowledgement anew.
     * @param [in] index The channel.
     * @param [in] fromPs From when.
     */
    void Arm(uint32_t index, int64_t fromPs)
    {
        Channel& channel = m_channels[index];
        int64_t timeoutPs = GetTimeoutPs();
        for (uint32_t i = 0; i < channel.tries && timeoutPs < (int64_t{1} << 56); ++i)
        {
            timeoutPs *= m_backOff;
        }
        channel.deadlinePs = fromPs + timeoutPs;
        if (channel.timerPs == 0)
        {
            SetRetransmit(index, channel.deadlinePs);
        }
    }

    /**
     * Set the retransmission timer; it is moved only when it runs out, not at each acknowledgement.
     * @param [in] index The channel.
     * @param [in] timePs When.
     */
    void SetRetransmit(uint32_t index, int64_t timePs)
    {
        Channel& channel = m_channels[index];
        channel.timerPs = timePs;
        m_host->SetTimer(timePs, m_network, TimerName(RETRANSMIT, channel), index);
    }

    /**
     * An acknowledgement reached the source.
     * @param [in] index The channel.
     * @param [in] ack What it says.
     * @param [in] nowPs The time.
     */
    void Acknowledged(uint32_t index, const UbAcknowledgement& ack, int64_t nowPs)
    {
        Channel& channel = m_channels[index];
        UbCongestionEcho echo;
        echo.marks = ack.marks;
        echo.hint = ack.hint;
        echo.mayGrow = ack.mayGrow;
        const auto arrived = [&](Outstanding& packet) {
            if (!packet.isAcknowledged)
            {
                ++echo.packets;
                echo.roundTripPs = packet.isRepeated ? echo.roundTripPs : nowPs - packet.sentPs;
            }
            if (packet.isToRepeat)
            {
                packet.isToRepeat = false;
                --channel.nToRepeat;
            }
            packet.isAcknowledged = true;
            TakeBack(channel, packet);
        };
        const bool isProgress = Distance(ack.expected, channel.first) > 0;
        while (Distance(ack.expected, channel.first) > 0)
        {
            const uint32_t flow = channel.outstanding[0].flow;
            const bool endsPiece = channel.outstanding[0].endsPiece;
            arrived(channel.outstanding[0]);
            channel.outstanding.Pop();
            ++channel.first;
            if (endsPiece)
            {
                m_host->Complete(flow, nowPs);
                m_host->Release(flow);
            }
        }
        uint32_t highest = channel.first; // after the last packet that is known to have arrived
        for (uint64_t left = ack.bitmap; left != 0; left &= left - 1)
        {
            const uint32_t number = ack.expected + 1 + static_cast<uint32_t>(__builtin_ctzll(left));
            const int32_t at = Distance(number, channel.first);
            if (at >= 0)
            {
                arrived(channel.outstanding[static_cast<uint32_t>(at)]);
                highest = number + 1;
            }
        }
        if (m_isOrdered)
        {
            RepeatAtOnce(channel, ack, highest);
        }
        if (m_congestion)
        {
            m_congestion->OnAcknowledgement(channel.congestion, echo, nowPs);
        }
        if (channel.outstanding.IsEmpty())
        {
            if (channel.timerPs != 0)
            {
                m_host->CancelTimer(channel.timerPs, m_network, TimerName(RETRANSMIT, channel));
                channel.timerPs = 0;
            }
            channel.tries = 0;
        }
        else if (isProgress)
        {
            channel.tries = 0;
            Arm(index, nowPs);
        }
        Wake(index, nowPs);
    }

    /**
     * Repeat what an acknowledgement shows to be lost, where packets keep their order.
     * @param [in,out] channel The channel.
     * @param [in] ack The acknowledgement.
     * @param [in] highest Number after the last packet that is known to have arrived.
     */
    void RepeatAtOnce(Channel& channel, const UbAcknowledgement& ack, uint32_t highest) const
    {
        if (ack.isNegative)
        {
            if (Distance(ack.expected, channel.first) == 0)
            {
                RepeatAll(channel);
            }
            return;
        }
        if (Distance(channel.repeatedUpTo, channel.first) < 0)
        {
            channel.repeatedUpTo = channel.first;
        }
        const uint32_t from = channel.repeatedUpTo;
        for (uint32_t number = from; Distance(highest, number) > 0; ++number)
        {
            Repeat(channel,
                   channel.outstanding[static_cast<uint32_t>(Distance(number, channel.first))]);
        }
        if (Distance(highest, from) > 0)
        {
            channel.repeatedUpTo = highest; // a second loss of a packet is left to the timer
        }
    }

    /**
     * A packet with payload reached the receiver.
     * @param [in] index The channel.
     * @param [in] delivery The packet.
     * @param [in] nowPs The time.
     */
    void Received(uint32_t index, const UbDelivery& delivery, int64_t nowPs)
    {
        Channel& channel = m_channels[index];
        const int32_t ahead = Distance(delivery.tag, channel.expected);
        NoticeIfMarked(index, delivery, nowPs);
        if (ahead < 0)
        {
            Acknowledge(index, delivery.flow, false, nowPs); // the source has missed one
            return;
        }
        const bool takesAny =
            m_reorderWindow > 0 && !(m_isOrdered && m_retransmission == GO_BACK_N);
        if (ahead > 0)
        {
            if (!takesAny)
            {
                if (m_isOrdered && !channel.isNegativeSent)
                {
                    channel.isNegativeSent = true;
                    Acknowledge(index, delivery.flow, true, nowPs);
                }
                return;
            }
            if (static_cast<uint32_t>(ahead) >= m_reorderWindow || Bit(channel, delivery.tag))
            {
                return;
            }
            SetBit(channel, delivery.tag, true);
            ++channel.nArrived;
        }
        else
        {
            channel.isNegativeSent = false;
            ++channel.expected;
            while (channel.nArrived > 0 && Bit(channel, channel.expected))
            {
                SetBit(channel, channel.expected, false);
                --channel.nArrived;
                ++channel.expected;
            }
        }
        m_host->Deliver(delivery);
        if ((delivery.congestion & UB_CONGESTION_MARKED) != 0)
        {
            ++channel.marks;
        }
        else if ((delivery.congestion & UB_CONGESTION_GROW) != 0)
        {
            channel.mayGrow = true;
            channel.hint += delivery.hint;
        }
        ++channel.nToAcknowledge;
        channel.ackFlow = delivery.flow;
        if (channel.nToAcknowledge >= m_ackEvery || (m_isOrdered && ahead > 0))
        {
            Acknowledge(index, delivery.flow, false, nowPs);
        }
        else if (channel.ackTimerPs == 0)
        {
            channel.ackTimerPs = nowPs + m_ackDelay.GetTimeStep();
            m_host->SetTimer(channel.ackTimerPs, m_network, TimerName(ACKNOWLEDGE, channel), index);
        }
    }

    /**
     * Send an acknowledgement.
     * @param [in] index The channel.
     * @param [in] flow A flow of the channel.
     * @param [in] isNegative Whether to ask the source to go back.
     * @param [in] nowPs The time.
     */
    void Acknowledge(uint32_t index, uint32_t flow, bool isNegative, int64_t nowPs)
    {
        Channel& channel = m_channels[index];
        uint32_t slot;
        if (m_freeAcks.empty())
        {
            slot = static_cast<uint32_t>(m_acks.size());
            m_acks.emplace_back();
        }
        else
        {
            slot = m_freeAcks.back();
            m_freeAcks.pop_back();
        }
        UbAcknowledgement& ack = m_acks[slot];
        ack = {channel.expected & NUMBER_MASK,
               channel.marks,
               channel.hint,
               0,
               isNegative,
               channel.mayGrow};
        if (m_retransmission == SELECTIVE && channel.nArrived > 0)
        {
            for (uint32_t i = 0; i < 64 && i + 1 < m_reorderWindow; ++i)
            {
                ack.bitmap |= Bit(channel, channel.expected + 1 + i) ? uint64_t{1} << i : 0;
            }
        }
        channel.marks = 0;
        channel.hint = 0;
        channel.mayGrow = false;
        channel.nToAcknowledge = 0;
        SendOn(index, false, flow, (ACKNOWLEDGEMENT << TYPE_SHIFT) | slot, m_ackBytes, 0, nowPs);
        if (channel.ackTimerPs != 0)
        {
            m_host->CancelTimer(channel.ackTimerPs, m_network, TimerName(ACKNOWLEDGE, channel));
            channel.ackTimerPs = 0;
        }
    }

    /**
     * @param [in] channel A channel.
     * @param [in] number Number of a packet within the reorder window.
     * @return Whether it arrived out of order.
     */
    bool Bit(const Channel& channel, uint32_t number) const
    {
        if (channel.arrived.empty())
        {
            return false;
        }
        const uint32_t bit = number & (RingBits() - 1);
        return ((channel.arrived[bit / 64] >> (bit % 64)) & 1) != 0;
    }

    /**
     * @param [in,out] channel A channel.
     * @param [in] number Number of a packet within the reorder window.
     * @param [in] value Whether it arrived out of order.
     */
    void SetBit(Channel& channel, uint32_t number, bool value) const
    {
        if (channel.arrived.empty())
        {
            channel.arrived.resize(RingBits() / 64, 0);
        }
        const uint32_t bit = number & (RingBits() - 1);
        const uint64_t mask = uint64_t{1} << (bit % 64);
        uint64_t& word = channel.arrived[bit / 64];
        word = value ? word | mask : word & ~mask;
    }

    /// @return Bits of the ring of packets out of order, a power of two.
    uint32_t RingBits() const
    {
        uint32_t bits = 64;
        while (bits < m_reorderWindow)
        {
            bits *= 2;
        }
        return bits;
    }

    uint32_t m_ackBytes{0};                     //!< attribute
    uint64_t m_windowBytes{0};                  //!< attribute
    uint32_t m_reorderWindow{0};                //!< attribute
    uint32_t m_ackEvery{0};                     //!< attribute
    Time m_ackDelay;                            //!< attribute
    Retransmission m_retransmission{SELECTIVE}; //!< attribute
    uint32_t m_backOff{0};                      //!< attribute
    std::vector<UbAcknowledgement> m_acks;      //!< acknowledgements under way
    std::vector<uint32_t> m_freeAcks;           //!< unused ones

  protected:
    void DoAttach() override
    {
        m_acks.clear();
    }
};

NS_OBJECT_ENSURE_REGISTERED(UbReliable);

} // namespace ns3
