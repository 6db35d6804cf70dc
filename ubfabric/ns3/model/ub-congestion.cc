// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-congestion.h"

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbCongestionControl);

TypeId
UbCongestionControl::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbCongestionControl").SetParent<Object>().SetGroupName("UbFabric");
    return tid;
}

void
UbCongestionControl::Begin(UbCongestionState& state,
                           uint32_t packetBytes,
                           uint64_t lineBytesPerS,
                           int64_t nowPs) const
{
    state = UbCongestionState();
    state.packetBytes = packetBytes;
    state.lineBytesPerS = lineBytesPerS;
    state.alphaPs = nowPs;
    state.timerPs = nowPs;
}

uint64_t
UbCongestionControl::WindowBytes(const UbCongestionState& /* state */) const
{
    return NO_LIMIT;
}

void
UbCongestionControl::OnAcknowledgement(UbCongestionState& state,
                                       const UbCongestionEcho& echo,
                                       int64_t /* nowPs */) const
{
    if (echo.roundTripPs > 0)
    {
        state.lastRoundTripPs = echo.roundTripPs;
        if (state.minRoundTripPs == 0 || echo.roundTripPs < state.minRoundTripPs)
        {
            state.minRoundTripPs = echo.roundTripPs;
        }
    }
}

void
UbCongestionControl::OnNotice(UbCongestionState& /* state */, int64_t /* nowPs */) const
{
}

} // namespace ns3
