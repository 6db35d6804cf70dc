// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-policy.h"

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbPlanePolicy);

TypeId
UbPlanePolicy::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbPlanePolicy").SetParent<Object>().SetGroupName("UbFabric");
    return tid;
}

} // namespace ns3
