// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-exchange.h"

#include "ns3/abort.h"
#include "ns3/boolean.h"
#include "ns3/string.h"

#include <sstream>

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbPlaneExchange);

TypeId
UbPlaneExchange::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbPlaneExchange")
            .SetParent<Object>()
            .SetGroupName("UbFabric")
            .AddAttribute("Owners",
                          "Rank that runs each plane, from plane 0 on, such as \"0 0 1 1\"; "
                          "planes left out go round the ranks.",
                          StringValue(""),
                          MakeStringAccessor(&UbPlaneExchange::m_owners),
                          MakeStringChecker())
            .AddAttribute("SpreadNodes",
                          "Whether a rank runs ordinary events of the nodes of its system id only, "
                          "and packets of UbNetDevices travel; else all ranks run all ordinary "
                          "events. Under ns3::UbSimulatorImpl only.",
                          BooleanValue(false),
                          MakeBooleanAccessor(&UbPlaneExchange::m_spreadsNodes),
                          MakeBooleanChecker());
    return tid;
}

std::vector<uint32_t>
UbPlaneExchange::Owners(uint32_t nPlanes) const
{
    std::vector<uint32_t> owners;
    std::istringstream text(m_owners);
    for (uint32_t rank; text >> rank;)
    {
        NS_ABORT_MSG_IF(rank >= GetSize(),
                        "plane " << owners.size() << " belongs to rank " << rank << "; there are "
                                 << GetSize());
        owners.push_back(rank);
    }
    NS_ABORT_MSG_IF(!text.eof(), "Owners: \"" << m_owners << "\" is no list of ranks");
    NS_ABORT_MSG_IF(owners.size() > nPlanes,
                    "Owners names " << owners.size() << " planes; there are " << nPlanes);
    for (auto plane = static_cast<uint32_t>(owners.size()); plane < nPlanes; ++plane)
    {
        owners.push_back(plane % GetSize());
    }
    return owners;
}

bool
UbPlaneExchange::SpreadsNodes() const
{
    return m_spreadsNodes;
}

} // namespace ns3
