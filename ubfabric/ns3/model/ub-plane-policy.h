// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_POLICY_H
#define UB_PLANE_POLICY_H

#include "ub-plane.h"

#include "ns3/object.h"

#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief First turns of sources that go round the planes; they start at different ones, or all
 * would hit the same one at the same time.
 * @param [in] nEndpoints Number of nodes of the fabric.
 * @param [in] seed Seed of the hashes.
 * @return A turn for each.
 */
inline std::vector<uint32_t>
UbFirstTurns(uint32_t nEndpoints, uint64_t seed)
{
    std::vector<uint32_t> turns(nEndpoints);
    for (uint32_t endpoint = 0; endpoint < nEndpoints; ++endpoint)
    {
        turns[endpoint] = static_cast<uint32_t>(UbMix(seed ^ endpoint) >> 33);
    }
    return turns;
}

/**
 * @ingroup ub-fabric
 * @brief How a source picks the plane of a packet.
 *
 * A policy is one class in one file with a TypeId; it may keep state by endpoint. It is asked
 * once a packet, at the source, so a virtual call does no harm.
 */
class UbPlanePolicy : public Object
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /**
     * Get ready for a fabric.
     * @param [in] nEndpoints Number of nodes of the fabric.
     * @param [in] seed Seed of the hashes.
     */
    virtual void Reset(uint32_t nEndpoints, uint64_t seed) = 0;

    /**
     * Choose.
     * @param [in] endpoint The source.
     * @param [in] nPlanes Number of planes to choose from, at least 1.
     * @param [in] flowHash The same for all packets of a flow.
     * @param [in] packetHash Differs from packet to packet.
     * @param [in] backlogPs [nPlanes] time that the endpoint's port into each plane needs for
     * what waits there; nullptr unless LooksAtPorts.
     * @return The choice, from 0 to nPlanes - 1.
     */
    virtual uint32_t Choose(uint32_t endpoint,
                            uint32_t nPlanes,
                            uint64_t flowHash,
                            uint64_t packetHash,
                            const int64_t* backlogPs) = 0;

    /**
     * Whether Choose wants to know what waits in the ports. That couples the planes: sources can
     * no longer run ahead of them, so the simulation proceeds instant by instant, as if somebody
     * listened to its trace sources.
     * @return Whether it does.
     */
    virtual bool LooksAtPorts() const
    {
        return false;
    }
};

} // namespace ns3

#endif // UB_PLANE_POLICY_H
