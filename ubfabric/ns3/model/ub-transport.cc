// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-transport.h"

#include "ns3/abort.h"
#include "ns3/uinteger.h"

#include <tuple>

namespace ns3
{

namespace
{

/**
 * @param [in] reaction A reaction.
 * @return All it holds, the flow first.
 */
auto
Contents(const UbReaction& reaction)
{
    const UbDelivery& d = reaction.delivery;
    const UbAcknowledgement& a = reaction.ack;
    return std::make_tuple(d.flow,
                           reaction.kind,
                           a.expected,
                           a.bitmap,
                           a.marks,
                           a.hint,
                           a.isNegative,
                           a.mayGrow,
                           d.tag,
                           d.tailPs,
                           d.headPs,
                           d.waitedPs,
                           d.payloadBytes,
                           d.hops,
                           d.congestion,
                           d.hint,
                           d.isLost);
}

} // namespace

bool
UbReaction::operator<(const UbReaction& other) const
{
    return Contents(*this) < Contents(other);
}

NS_OBJECT_ENSURE_REGISTERED(UbTransport);

TypeId
UbTransport::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbTransport")
            .SetParent<Object>()
            .SetGroupName("UbFabric")
            .AddAttribute("RetryLimit",
                          "How often a packet is sent again before the source gives up (UB base "
                          "specification 2.0, table 6-8).",
                          UintegerValue(7),
                          MakeUintegerAccessor(&UbTransport::m_retryLimit),
                          MakeUintegerChecker<uint32_t>(0, 31));
    return tid;
}

void
UbTransport::Attach(UbTransportHost& host,
                    uint32_t network,
                    uint32_t payloadBytes,
                    Ptr<UbCongestionControl> congestion)
{
    m_host = &host;
    m_network = network;
    m_payloadBytes = payloadBytes;
    m_congestion = congestion;
    DoAttach();
}

void
UbTransport::DoAttach()
{
    NS_ABORT_MSG_IF(m_congestion,
                    GetInstanceTypeId().GetName() << " works without congestion control");
}

void
UbTransport::Pump(uint32_t /* endpoint */, int64_t /* nowPs */)
{
}

void
UbTransport::Expire(uint64_t /* name */, uint32_t /* index */, int64_t /* nowPs */)
{
}

} // namespace ns3
