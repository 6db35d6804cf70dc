/*
 * SPDX-License-Identifier: GPL-2.0-only
 */

#include "ub-version.h"

#include "ns3/log.h"
#include "ns3/nstime.h"

namespace ns3
{

NS_LOG_COMPONENT_DEFINE("UbVersion");

NS_OBJECT_ENSURE_REGISTERED(UbVersion);

#ifndef UBFABRIC_VERSION
#define UBFABRIC_VERSION "contrib"
#endif

namespace
{
/// Resolution at the time this library's static objects were made.
const Time::Unit g_registrationResolution = Time::GetResolution();
} // namespace

TypeId
UbVersion::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbVersion")
                            .SetParent<Object>()
                            .SetGroupName("UbFabric")
                            .AddConstructor<UbVersion>();
    return tid;
}

std::string
UbVersion::GetPackageVersion()
{
    return UBFABRIC_VERSION;
}

int
UbVersion::GetRegistrationResolution()
{
    return g_registrationResolution;
}

} // namespace ns3
