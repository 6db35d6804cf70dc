// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-congestion.h"

#include "ns3/double.h"
#include "ns3/nstime.h"
#include "ns3/uinteger.h"

#include <algorithm>
#include <cmath>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief DCQCN: congestion notices lower a rate, time and bytes raise it again.
 *
 * After Zhu et al., "Congestion Control for Large-Scale RDMA Deployments", SIGCOMM 2015. A notice
 * keeps the rate as target, lowers it by alpha / 2, and moves alpha towards 1; alpha decays while
 * no notice comes. Each step of a timer and of a byte counter since the last notice moves the rate
 * half-way to the target; after FastSteps steps of either the target grows too, after FastSteps
 * of both faster. Increases are shares of the ports' rate, since the paper's 40 Mbit/s belong to
 * its 40 Gbit/s ports.
 */
class UbDcqcn : public UbCongestionControl
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid =
            TypeId("ns3::UbDcqcn")
                .SetParent<UbCongestionControl>()
                .SetGroupName("UbFabric")
                .AddConstructor<UbDcqcn>()
                .AddAttribute("Gain",
                              "Weight of a notice in alpha (the paper: 1/256).",
                              DoubleValue(1.0 / 256),
                              MakeDoubleAccessor(&UbDcqcn::m_gain),
                              MakeDoubleChecker<double>(0.0, 1.0))
                .AddAttribute("AlphaPeriod",
                              "Time without a notice until alpha decays (the paper: 55 us).",
                              TimeValue(MicroSeconds(55)),
                              MakeTimeAccessor(&UbDcqcn::m_alphaPeriod),
                              MakeTimeChecker(PicoSeconds(1)))
                .AddAttribute("RatePeriod",
                              "Step of the timer (the paper: 55 us).",
                              TimeValue(MicroSeconds(55)),
                              MakeTimeAccessor(&UbDcqcn::m_ratePeriod),
                              MakeTimeChecker(PicoSeconds(1)))
                .AddAttribute("RateBytes",
                              "Step of the byte counter (the paper: 10 MB).",
                              UintegerValue(10'000'000),
                              MakeUintegerAccessor(&UbDcqcn::m_rateBytes),
                              MakeUintegerChecker<uint64_t>(1))
                .AddAttribute("NoticeGap",
                              "Least time between two notices to a source (the paper: 50 us).",
                              TimeValue(MicroSeconds(50)),
                              MakeTimeAccessor(&UbDcqcn::m_noticeGap),
                              MakeTimeChecker(PicoSeconds(1)))
                .AddAttribute("FastSteps",
                              "Steps without growth of the target (the paper: 5).",
                              UintegerValue(5),
                              MakeUintegerAccessor(&UbDcqcn::m_fastSteps),
                              MakeUintegerChecker<uint32_t>(1))
                .AddAttribute("AdditiveShare",
                              "Growth of the target, as a share of the ports' rate (the paper: "
                              "40 Mbit/s of 40 Gbit/s).",
                              DoubleValue(0.001),
                              MakeDoubleAccessor(&UbDcqcn::m_additive),
                              MakeDoubleChecker<double>(0.0, 1.0))
                .AddAttribute("HyperShare",
                              "Faster growth of the target, likewise (assumed).",
                              DoubleValue(0.01),
                              MakeDoubleAccessor(&UbDcqcn::m_hyper),
                              MakeDoubleChecker<double>(0.0, 1.0))
                .AddAttribute("LeastShare",
                              "Least rate, as a share of the ports' rate (assumed).",
                              DoubleValue(0.001),
                              MakeDoubleAccessor(&UbDcqcn::m_least),
                              MakeDoubleChecker<double>(0.000001, 1.0));
        return tid;
    }

    void Begin(UbCongestionState& state,
               uint32_t packetBytes,
               uint64_t lineBytesPerS,
               int64_t nowPs) const override
    {
        UbCongestionControl::Begin(state, packetBytes, lineBytesPerS, nowPs);
        state.bytesPerS = static_cast<double>(lineBytesPerS);
        state.target = state.bytesPerS;
        state.alpha = 1.0;
    }

    bool NeedsAcknowledgements() const override
    {
        return false;
    }

    int64_t NoticeGapPs() const override
    {
        return m_noticeGap.GetTimeStep();
    }

    int64_t OnSend(UbCongestionState& state,
                   uint32_t bytes,
                   int64_t nowPs,
                   uint8_t& /* congestion */,
                   uint8_t& /* hint */) const override
    {
        Advance(state, nowPs);
        if (IsAtLine(state))
        {
            return 0; // the port itself is the limit
        }
        state.bytesCounted += bytes;
        while (state.bytesCounted >= static_cast<double>(m_rateBytes))
        {
            state.bytesCounted -= static_cast<double>(m_rateBytes);
            ++state.byteSteps;
            Raise(state);
        }
        return std::llround(bytes * 1e12 / state.bytesPerS);
    }

    void OnNotice(UbCongestionState& state, int64_t nowPs) const override
    {
        Advance(state, nowPs);
        const auto line = static_cast<double>(state.lineBytesPerS);
        state.target = state.bytesPerS;
        state.bytesPerS = std::max(state.bytesPerS * (1 - state.alpha / 2), m_least * line);
        state.alpha = (1 - m_gain) * state.alpha + m_gain;
        state.alphaPs = nowPs;
        state.timerPs = nowPs;
        state.timerSteps = 0;
        state.byteSteps = 0;
        state.bytesCounted = 0;
        state.congestedPs = nowPs;
    }

  private:
    /**
     * @param [in] state State of a sender.
     * @return Whether its rate is that of the ports.
     */
    static bool IsAtLine(const UbCongestionState& state)
    {
        return state.bytesPerS >= static_cast<double>(state.lineBytesPerS);
    }

    /**
     * Take the steps of time since the state was last used.
     * @param [in,out] state State of the sender.
     * @param [in] nowPs The time.
     */
    void Advance(UbCongestionState& state, int64_t nowPs) const
    {
        const int64_t decays = (nowPs - state.alphaPs) / m_alphaPeriod.GetTimeStep();
        if (decays > 0)
        {
            state.alpha *= std::pow(1 - m_gain, static_cast<double>(decays));
            state.alphaPs += decays * m_alphaPeriod.GetTimeStep();
        }
        while (!IsAtLine(state) && nowPs - state.timerPs >= m_ratePeriod.GetTimeStep())
        {
            state.timerPs += m_ratePeriod.GetTimeStep();
            ++state.timerSteps;
            Raise(state);
        }
    }

    /**
     * Raise the rate by one step.
     * @param [in,out] state State of the sender.
     */
    void Raise(UbCongestionState& state) const
    {
        const auto line = static_cast<double>(state.lineBytesPerS);
        const uint32_t more = std::max(state.timerSteps, state.byteSteps);
        const uint32_t less = std::min(state.timerSteps, state.byteSteps);
        if (less > m_fastSteps)
        {
            state.target += (less - m_fastSteps) * m_hyper * line;
        }
        else if (more > m_fastSteps)
        {
            state.target += m_additive * line;
        }
        state.target = std::min(state.target, line);
        state.bytesPerS = (state.bytesPerS + state.target) / 2;
        if (state.bytesPerS > 0.999999 * line)
        {
            state.bytesPerS = line; // halving the distance would never arrive
        }
    }

    double m_gain{0.0};      //!< attribute
    Time m_alphaPeriod;      //!< attribute
    Time m_ratePeriod;       //!< attribute
    uint64_t m_rateBytes{0}; //!< attribute
    Time m_noticeGap;        //!< attribute
    uint32_t m_fastSteps{0}; //!< attribute
    double m_additive{0.0};  //!< attribute
    double m_hyper{0.0};     //!< attribute
    double m_least{0.0};     //!< attribute
};

NS_OBJECT_ENSURE_REGISTERED(UbDcqcn);

} // namespace ns3
