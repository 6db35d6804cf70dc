// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-path-policy.h"

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbPathPolicy);

TypeId
UbPathPolicy::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbPathPolicy").SetParent<Object>().SetGroupName("UbFabric");
    return tid;
}

} // namespace ns3
