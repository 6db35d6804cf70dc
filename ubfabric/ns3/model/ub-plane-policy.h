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
 * @brief Turns of sources that go round the planes, each plane once a round.
 *
 * A round begins at a plane given by the seed. Were it always the same one, sources that send at
 * one pace would lock in step with each other: in a bulk exchange of 16 dies, eight transfers of
 * each at once, all that a die gets at a time would come over two planes of seven.
 */
class UbPlaneTurns
{
  public:
    /**
     * Begin anew.
     * @param [in] nEndpoints Number of nodes of the fabric.
     * @param [in] seed Seed of the hashes.
     */
    void Reset(uint32_t nEndpoints, uint64_t seed)
    {
        m_next.assign(nEndpoints, 0);
        m_salt = UbMix(seed);
    }

    /**
     * Take a turn.
     * @param [in] endpoint The source.
     * @param [in] nPlanes Number of planes.
     * @return The plane whose turn it is.
     */
    uint32_t Next(uint32_t endpoint, uint32_t nPlanes)
    {
        const uint32_t turn = m_next[endpoint]++;
        const uint64_t round = (static_cast<uint64_t>(endpoint) << 32) | (turn / nPlanes);
        return (turn + UbReduce(UbMix(m_salt ^ round), nPlanes)) % nPlanes;
    }

  private:
    std::vector<uint32_t> m_next; //!< next turn of each source
    uint64_t m_salt{0};           //!< seed of where rounds begin
};

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
