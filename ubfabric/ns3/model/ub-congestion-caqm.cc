// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-congestion.h"
#include "ub-plane.h"

#include "ns3/double.h"
#include "ns3/uinteger.h"

#include <algorithm>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief CAQM, confined active queue management: the network grants the growth of the window.
 *
 * The source's part of it, after the UB base specification 2.0, section 6.6.1.3, with the
 * parameters of ns-3-UB. Each packet asks for growth (UB_CONGESTION_GROW and the hint, in units
 * of UnitBytes): for as much as a packet until the network first refuses or marks one, and again
 * when it has done neither for Theta round trips; between, for so much that the window grows by
 * Alpha packets a round trip. Switches let the request pass, refuse it, or mark the packet. The
 * receiver adds up what was granted and counts the marked packets; by these the window grows, and
 * shrinks by Beta packets for each marked one, or by half if it is one packet or less, to Gamma
 * packets at least.
 *
 * Assumed: the request between is Alpha packets over a window, in whole units, with what is left
 * over carried on; public sources give its form without its unit.
 */
class UbCaqm : public UbCongestionControl
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbCaqm")
                .SetParent<UbCongestionControl>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbCaqm>()
                .AddAttribute("InitialPackets",
                              "Window at the start, in packets (ns-3-UB: 10).",
                              DoubleValue(10.0),
                              MakeDoubleAccessor(&UbCaqm::m_initial),
                              MakeDoubleChecker<double>(1.0))
                .AddAttribute("Alpha",
                              "Growth asked for each round trip, in packets (ns-3-UB: 0.5).",
                              DoubleValue(0.5),
                              MakeDoubleAccessor(&UbCaqm::m_alpha),
                              MakeDoubleChecker<double>(0.0, 1.0))
                .AddAttribute("Beta",
                              "Decrease for a marked packet, in packets (ns-3-UB: 0.5).",
                              DoubleValue(0.5),
                              MakeDoubleAccessor(&UbCaqm::m_beta),
                              MakeDoubleChecker<double>(0.0, 1.0))
                .AddAttribute("Gamma",
                              "Least window, in packets (ns-3-UB: 0.5).",
                              DoubleValue(0.5),
                              MakeDoubleAccessor(&UbCaqm::m_gamma),
                              MakeDoubleChecker<double>(0.001, 1.0))
                .AddAttribute("Theta",
                              "Round trips without a refusal or mark until whole packets are "
                              "asked for again (ns-3-UB: 10).",
                              UintegerValue(10),
                              MakeUintegerAccessor(&UbCaqm::m_theta),
                              MakeUintegerChecker<uint32_t>(1))
                .AddAttribute("UnitBytes",
                              "Bytes that a hint counts (ns-3-UB: 32).",
                              UintegerValue(32),
                              MakeUintegerAccessor(&UbCaqm::m_unitBytes),
                              MakeUintegerChecker<uint32_t>(1));
        return tid;
    }

    void Begin(UbCongestionState& state,
               uint32_t packetBytes,
               uint64_t lineBytesPerS,
               int64_t nowPs) const override
    {
        UbCongestionControl::Begin(state, packetBytes, lineBytesPerS, nowPs);
        state.window = m_initial * packetBytes;
    }

    bool NeedsAcknowledgements() const override
    {
        return true;
    }

    uint64_t WindowBytes(const UbCongestionState& state) const override
    {
        return static_cast<uint64_t>(state.window);
    }

    int64_t OnSend(UbCongestionState& state,
                   uint32_t /* bytes */,
                   int64_t nowPs,
                   uint8_t& congestion,
                   uint8_t& hint) const override
    {
        constexpr double most = 255.0;
        congestion |= UB_CONGESTION_GROW;
        const double packet = state.packetBytes;
        const bool isSlowStart =
            state.congestedPs < 0 || nowPs - state.congestedPs > m_theta * state.minRoundTripPs;
        if (isSlowStart || state.window < packet)
        {
            hint = static_cast<uint8_t>(std::min(packet / m_unitBytes, most));
            return 0;
        }
        state.fraction =
            std::min(state.fraction + m_alpha * packet * packet / state.window / m_unitBytes, most);
        hint = static_cast<uint8_t>(state.fraction);
        state.fraction -= hint;
        return 0;
    }

    void OnAcknowledgement(UbCongestionState& state,
                           const UbCongestionEcho& echo,
                           int64_t nowPs) const override
    {
        UbCongestionControl::OnAcknowledgement(state, echo, nowPs);
        if (echo.packets > 0 && (echo.marks > 0 || !echo.mayGrow))
        {
            state.congestedPs = nowPs;
        }
        const double packet = state.packetBytes;
        if (echo.mayGrow)
        {
            state.window += static_cast<double>(echo.hint) * m_unitBytes;
        }
        if (echo.marks > 0)
        {
            state.window = state.window > packet ? state.window - echo.marks * m_beta * packet
                                                 : state.window / 2;
        }
        state.window = std::max(state.window, m_gamma * packet);
    }

  private:
    double m_initial{0.0};   //!< attribute
    double m_alpha{0.0};     //!< attribute
    double m_beta{0.0};      //!< attribute
    double m_gamma{0.0};     //!< attribute
    uint32_t m_theta{0};     //!< attribute
    uint32_t m_unitBytes{0}; //!< attribute
};

NS_OBJECT_ENSURE_REGISTERED(UbCaqm);

} // namespace ns3
