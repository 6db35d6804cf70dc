// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_TRANSPORT_QUEUED_H
#define UB_TRANSPORT_QUEUED_H

#include "ub-transport.h"

#include <deque>
#include <unordered_map>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief A queue that keeps its memory when it is empty, and takes none before it is used.
 * @tparam T What it holds.
 */
template <class T>
class UbRing
{
  public:
    /// @return Whether it holds nothing.
    bool IsEmpty() const
    {
        return m_size == 0;
    }

    /// @return How many it holds.
    uint32_t Size() const
    {
        return m_size;
    }

    /**
     * @param [in] at A place, 0 for the oldest.
     * @return What is there.
     */
    T& operator[](uint32_t at)
    {
        return m_slots[(m_head + at) & (m_slots.size() - 1)];
    }

    /**
     * @param [in] at A place, 0 for the oldest.
     * @return What is there.
     */
    const T& operator[](uint32_t at) const
    {
        return m_slots[(m_head + at) & (m_slots.size() - 1)];
    }

    /// Add at the end. @param [in] value What.
    void Push(const T& value)
    {
        if (m_size == m_slots.size())
        {
            std::vector<T> slots(m_slots.empty() ? 4 : 2 * m_slots.size());
            for (uint32_t at = 0; at < m_size; ++at)
            {
                slots[at] = (*this)[at];
            }
            m_slots.swap(slots);
            m_head = 0;
        }
        ++m_size;
        (*this)[m_size - 1] = value;
    }

    /// Take the oldest away.
    void Pop()
    {
        ++m_head;
        --m_size;
    }

  private:
    std::vector<T> m_slots; //!< a power of two of places, or none
    uint32_t m_head{0};     //!< place of the oldest, modulo their number
    uint32_t m_size{0};     //!< how many it holds
};

/**
 * @ingroup ub-fabric
 * @brief The part that is the same for transports that a controller runs: UbReliable, UbCompact.
 *
 * An engine describes pieces of messages (work requests) and goes on. They wait in channels, one
 * for each source, destination and virtual lane at work; the controller of an endpoint sends one
 * packet after another, round robin over its channels that may send, as fast as the egress takes
 * them. Congestion control holds a channel back.
 */
class UbQueuedTransport : public UbTransport
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    uint32_t PacketBytes() const override;
    uint32_t PieceBytes() const override;
    Style GetStyle() const override;
    int64_t HandOver(const UbPiece& piece, int64_t nowPs) override;
    void Pump(uint32_t endpoint, int64_t nowPs) override;
    void Expire(uint64_t name, uint32_t index, int64_t nowPs) override;

  protected:
    /// A piece of a message that waits to be sent.
    struct Work
    {
        uint32_t flow; //!< the flow
        uint32_t left; //!< bytes not yet sent
    };

    /// A packet that is not yet acknowledged; for UbReliable.
    struct Outstanding
    {
        uint32_t flow;       //!< the flow
        uint32_t bytes;      //!< its payload
        int64_t sentPs;      //!< when it was sent last
        bool isUnderWay;     //!< counted in `bytesUnderWay`
        bool isAcknowledged; //!< arrived, though an earlier one did not
        bool isToRepeat;     //!< must be sent again
        bool isRepeated;     //!< was sent again
        bool endsPiece;      //!< the last of a work request
    };

    /// What is kept of a source and a destination while something is under way between them.
    struct Channel
    {
        uint32_t src{0};                 //!< the source
        uint32_t dst{0};                 //!< the destination
        uint8_t lane{0};                 //!< virtual lane
        bool isQueued{false};            //!< waits for its turn
        bool isPaced{false};             //!< a timer is set for its next packet
        int64_t nextSendPs{0};           //!< congestion control lets it send then
        uint32_t underWay{0};            //!< packets under way, both directions
        int64_t noticePs{-1};            //!< last congestion notice sent, -1: none
        UbCongestionState congestion;    //!< of the source
        UbRing<Work> work;               //!< pieces to send
        UbRing<Outstanding> outstanding; //!< packets from number `first` on
        uint32_t first{0};               //!< number of the first packet not acknowledged
        uint32_t nToRepeat{0};           //!< packets to be sent again
        uint32_t repeatedUpTo{0};        //!< packets before it were repeated on a sign of loss
        uint64_t bytesUnderWay{0};       //!< sent and not acknowledged
        uint32_t tries{0};               //!< timeouts in a row
        int64_t timerPs{0};              //!< the retransmission timer is set for, 0: is not set
        int64_t deadlinePs{0};           //!< and is to act then
        uint32_t expected{0};            //!< receiver: all packets before it arrived
        std::vector<uint64_t> arrived;   //!< receiver: ring of bits, packets out of order
        uint32_t nArrived{0};            //!< receiver: bits that are set
        uint32_t nToAcknowledge{0};      //!< receiver: packets accepted, not acknowledged
        uint32_t ackFlow{UB_NONE};       //!< receiver: flow of the last of them
        int64_t ackTimerPs{0};           //!< receiver: acknowledgement due, 0: none
        uint32_t marks{0};               //!< receiver: marked packets since the last one
        uint32_t hint{0};                //!< receiver: growth granted since the last one
        bool mayGrow{false};             //!< receiver: the network granted growth
        bool isNegativeSent{false};      //!< receiver: told the source to go back
    };

    /// What a timer is for; the top bits of its name.
    enum TimerKind : uint64_t
    {
        PACE = 0,        //!< a channel may send again
        RETRANSMIT = 1,  //!< nothing was acknowledged for too long
        ACKNOWLEDGE = 2, //!< accepted packets must be acknowledged
    };

    static constexpr uint32_t TYPE_SHIFT = 30;     //!< type of a packet above, its number below
    static constexpr uint32_t DATA = 0;            //!< type: payload
    static constexpr uint32_t ACKNOWLEDGEMENT = 1; //!< type: UbAcknowledgement
    static constexpr uint32_t NOTICE = 2;          //!< type: congestion notice

    /**
     * @param [in] channel A channel.
     * @return Payload of the packet that it may send now, 0 if it may not send or has none.
     */
    virtual uint32_t NextBytes(const Channel& channel) const = 0;

    /**
     * Send the packet that NextBytes() tells of.
     * @param [in] index The channel.
     * @param [in] nowPs The time.
     */
    virtual void SendNext(uint32_t index, int64_t nowPs) = 0;

    /**
     * A timer of another kind than PACE ran out.
     * @param [in] kind Its kind.
     * @param [in] index The channel.
     * @param [in] nowPs The time.
     */
    virtual void ChannelTimer(TimerKind kind, uint32_t index, int64_t nowPs);

    /**
     * @param [in] src A source.
     * @param [in] dst A destination.
     * @param [in] lane A virtual lane.
     * @return A number that no other channel has, below 2^60.
     */
    static uint64_t Key(uint32_t src, uint32_t dst, uint8_t lane)
    {
        return (uint64_t{src} << 32) | (uint64_t{dst} << 4) | lane;
    }

    /**
     * @param [in] kind Kind of a timer.
     * @param [in] channel Its channel.
     * @return Its name.
     */
    static uint64_t TimerName(TimerKind kind, const Channel& channel)
    {
        return (uint64_t{kind} << 60) | Key(channel.src, channel.dst, channel.lane);
    }

    /**
     * @param [in] flow A flow.
     * @return Its channel, UB_NONE if there is none.
     */
    uint32_t FindChannel(uint32_t flow) const;

    /**
     * Put a channel in line if it may send, or see to it later.
     * @param [in] index The channel.
     * @param [in] nowPs The time.
     */
    void Wake(uint32_t index, int64_t nowPs);

    /**
     * Forget a channel if nothing is left of it.
     * @param [in] index The channel.
     */
    void CloseIfIdle(uint32_t index);

    /**
     * Put a packet into a port, to which its flow and its channel are held until it is done.
     * @param [in] index The channel.
     * @param [in] isForward From the source to the destination, not back.
     * @param [in] flow The flow that it belongs to.
     * @param [in] tag Its type and number.
     * @param [in] headerBytes Its headers.
     * @param [in] payloadBytes Its payload.
     * @param [in] nowPs The time.
     * @return When the egress takes it.
     */
    int64_t SendOn(uint32_t index,
                   bool isForward,
                   uint32_t flow,
                   uint32_t tag,
                   uint32_t headerBytes,
                   uint32_t payloadBytes,
                   int64_t nowPs);

    /**
     * Answer a marked packet with a congestion notice, if one is due.
     * @param [in] index The channel.
     * @param [in] delivery The packet.
     * @param [in] nowPs The time.
     */
    void NoticeIfMarked(uint32_t index, const UbDelivery& delivery, int64_t nowPs);

    uint32_t m_mtu{0};               //!< attribute
    uint32_t m_workBytes{0};         //!< attribute
    uint32_t m_noticeBytes{0};       //!< attribute
    bool m_isOrdered{false};         //!< attribute
    std::vector<Channel> m_channels; //!< pool of channels

  private:
    /// The controller of an endpoint.
    struct Controller
    {
        std::deque<uint32_t> ready; //!< channels in line
        bool isScheduled{false};    //!< Pump() is to be called
    };

    /**
     * See to it that Pump() is called when the egress is free.
     * @param [in] endpoint The endpoint.
     * @param [in] nowPs The time.
     */
    void ScheduleNext(uint32_t endpoint, int64_t nowPs);

    std::unordered_map<uint64_t, uint32_t> m_channelOf; //!< channel by Key()
    std::vector<uint32_t> m_freeChannels;               //!< unused channels
    std::vector<Controller> m_controllers;              //!< by endpoint
};

} // namespace ns3

#endif // UB_TRANSPORT_QUEUED_H
