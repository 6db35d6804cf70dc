// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_CONGESTION_H
#define UB_CONGESTION_H

#include "ns3/object.h"

#include <cstdint>
#include <limits>

namespace ns3
{

/// What a sender remembers of the congestion on the way to a destination.
struct UbCongestionState
{
    double window{0.0};         //!< window in bytes
    double bytesPerS{0.0};      //!< rate
    double target{0.0};         //!< rate before the last decrease
    double alpha{0.0};          //!< share of marked packets, as estimated
    double fraction{0.0};       //!< part of a unit of growth not yet asked for
    double bytesCounted{0.0};   //!< bytes sent since the last step of the byte counter
    uint64_t lineBytesPerS{0};  //!< rate of the source's ports
    uint32_t packetBytes{0};    //!< payload of a full packet
    uint32_t timerSteps{0};     //!< steps of the rate timer since the last decrease
    uint32_t byteSteps{0};      //!< steps of the byte counter since the last decrease
    int64_t minRoundTripPs{0};  //!< shortest round trip, 0: none yet
    int64_t lastRoundTripPs{0}; //!< last round trip, 0: none yet
    int64_t congestedPs{-1};    //!< last sign of congestion, -1: none
    int64_t alphaPs{0};         //!< last update of alpha
    int64_t timerPs{0};         //!< last step of the rate timer
};

/// What an acknowledgement says to the congestion control.
struct UbCongestionEcho
{
    uint32_t packets{0};    //!< packets newly acknowledged, marked ones included
    uint32_t marks{0};      //!< marked packets
    uint32_t hint{0};       //!< growth granted, in units of the congestion control
    bool mayGrow{false};    //!< the network grants growth
    int64_t roundTripPs{0}; //!< time since the newest of the packets was sent, 0: not known
};

/**
 * @ingroup ub-fabric
 * @brief How fast a source may send to a destination.
 *
 * One object serves all senders of a network; what differs from one to the next is in
 * UbCongestionState. Time-driven changes are worked out when the state is used next, so no event
 * is spent on them. A new algorithm is a class in a file of its own; see ub-congestion-ldcp.cc.
 */
class UbCongestionControl : public Object
{
  public:
    /// No limit to the window.
    static constexpr uint64_t NO_LIMIT = std::numeric_limits<uint64_t>::max();

    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /**
     * Begin to send to a destination.
     * @param [out] state What to remember.
     * @param [in] packetBytes Payload of a full packet.
     * @param [in] lineBytesPerS Rate of the source's ports.
     * @param [in] nowPs The time.
     */
    virtual void Begin(UbCongestionState& state,
                       uint32_t packetBytes,
                       uint64_t lineBytesPerS,
                       int64_t nowPs) const;

    /// @return Whether it needs acknowledgements.
    virtual bool NeedsAcknowledgements() const = 0;

    /// @return Time between two congestion notices to a sender at least; 0: it needs no notices.
    virtual int64_t NoticeGapPs() const
    {
        return 0;
    }

    /**
     * @param [in] state State of the sender.
     * @return Most bytes under way.
     */
    virtual uint64_t WindowBytes(const UbCongestionState& state) const;

    /**
     * A packet is about to leave.
     * @param [in,out] state State of the sender.
     * @param [in] bytes Its payload.
     * @param [in] nowPs The time.
     * @param [in,out] congestion Its UbCongestionBits.
     * @param [in,out] hint The growth that it asks for.
     * @return Time until the next packet may leave, from now.
     */
    virtual int64_t OnSend(UbCongestionState& state,
                           uint32_t bytes,
                           int64_t nowPs,
                           uint8_t& congestion,
                           uint8_t& hint) const = 0;

    /**
     * An acknowledgement came.
     * @param [in,out] state State of the sender.
     * @param [in] echo What it says.
     * @param [in] nowPs The time.
     */
    virtual void OnAcknowledgement(UbCongestionState& state,
                                   const UbCongestionEcho& echo,
                                   int64_t nowPs) const;

    /**
     * A congestion notice came.
     * @param [in,out] state State of the sender.
     * @param [in] nowPs The time.
     */
    virtual void OnNotice(UbCongestionState& state, int64_t nowPs) const;
};

} // namespace ns3

#endif // UB_CONGESTION_H
