// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-congestion.h"

#include "ns3/double.h"

#include <algorithm>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief LDCP, the low delay control protocol: a window that each acknowledged packet changes.
 *
 * Public: the UB base specification 2.0 (section 6.6.1) names LDCP as its window-based congestion
 * control and has acknowledgements count marked packets; the IETF draft
 * draft-dai-tsvwg-pfc-free-congestion-control-01 says that it reacts to marks alone and lets a new
 * flow start at full speed; the parameters of the HNS RoCE driver say what a packet does to a
 * window of w packets:
 *  - w > 1: plus alpha / w if it was not marked, minus beta if it was;
 *  - w <= 1: plus gamma if it was not marked, times eta if it was, gamma at least.
 * The driver recommends alpha 1, beta 0.5, gamma 0.25, eta 0.5. Assumed: the window at the start,
 * and that with a window below one packet the source sends one packet every round trip / w.
 */
class UbLdcp : public UbCongestionControl
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbLdcp")
                .SetParent<UbCongestionControl>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbLdcp>()
                .AddAttribute("InitialPackets",
                              "Window at the start, in packets (assumed: 196 GB/s times 2.1 us "
                              "are 100 packets of 4096 B).",
                              DoubleValue(100.0),
                              MakeDoubleAccessor(&UbLdcp::m_initial),
                              MakeDoubleChecker<double>(1.0))
                .AddAttribute("Alpha",
                              "Growth of a window of one packet (HNS RoCE driver: 1).",
                              DoubleValue(1.0),
                              MakeDoubleAccessor(&UbLdcp::m_alpha),
                              MakeDoubleChecker<double>(0.0))
                .AddAttribute("Beta",
                              "Decrease for a marked packet, in packets (HNS RoCE driver: 0.5).",
                              DoubleValue(0.5),
                              MakeDoubleAccessor(&UbLdcp::m_beta),
                              MakeDoubleChecker<double>(0.0))
                .AddAttribute("Gamma",
                              "Growth of a window below one packet, and its least size, in "
                              "packets (HNS RoCE driver: 0.25).",
                              DoubleValue(0.25),
                              MakeDoubleAccessor(&UbLdcp::m_gamma),
                              MakeDoubleChecker<double>(0.001, 1.0))
                .AddAttribute("Eta",
                              "Factor for a marked packet at a window of one packet or less (HNS "
                              "RoCE driver: 0.5).",
                              DoubleValue(0.5),
                              MakeDoubleAccessor(&UbLdcp::m_eta),
                              MakeDoubleChecker<double>(0.0, 1.0));
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
                   int64_t /* nowPs */,
                   uint8_t& /* congestion */,
                   uint8_t& /* hint */) const override
    {
        const double packets = state.window / state.packetBytes;
        return packets >= 1.0
                   ? 0
                   : static_cast<int64_t>(static_cast<double>(state.lastRoundTripPs) / packets);
    }

    void OnAcknowledgement(UbCongestionState& state,
                           const UbCongestionEcho& echo,
                           int64_t nowPs) const override
    {
        UbCongestionControl::OnAcknowledgement(state, echo, nowPs);
        double window = state.window / state.packetBytes;
        for (uint32_t i = echo.marks; i < echo.packets; ++i)
        {
            window += window > 1.0 ? m_alpha / window : m_gamma;
        }
        for (uint32_t i = 0; i < echo.marks; ++i)
        {
            window = window > 1.0 ? window - m_beta : window * m_eta;
            window = std::max(window, m_gamma);
        }
        state.window = window * state.packetBytes;
    }

  private:
    double m_initial{0.0}; //!< attribute
    double m_alpha{0.0};   //!< attribute
    double m_beta{0.0};    //!< attribute
    double m_gamma{0.0};   //!< attribute
    double m_eta{0.0};     //!< attribute
};

NS_OBJECT_ENSURE_REGISTERED(UbLdcp);

} // namespace ns3
