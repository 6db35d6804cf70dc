// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PATH_POLICY_H
#define UB_PATH_POLICY_H

#include "ub-plane.h"

#include "ns3/object.h"

#include <memory>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief How a switch picks among the shortest paths.
 *
 * A policy is one class in one file: it derives from UbPathPolicyOf (ub-plane-engine.h),
 * registers a TypeId, and has a nested class `InPlane`, of which each plane owns one (planes
 * share nothing):
 *
 *  - `InPlane(uint32_t nGroups)`;
 *  - `uint32_t Hash(const UbInjection&) const`: 32 bits to remember in the packet;
 *  - `uint32_t Choose(uint32_t group, uint32_t nLinks, uint64_t salt, uint32_t hash)`: which of
 *    the group's links, from 0 to nLinks - 1; the salt differs from group to group;
 *  - `uint32_t Guess(uint32_t group, uint32_t nLinks, uint64_t salt, uint32_t hash,
 *    uint32_t nBefore) const`: what Choose would choose, or may, after nBefore other packets;
 *    large planes prefetch by it, and nothing else depends on it;
 *  - `static constexpr bool LOOKS_AT_PORTS`: if true, Choose has a fifth argument that says for
 *    each choice how long its port needs for what waits there, in picoseconds. A link that is
 *    faster than others stands in the group more than once, so that policies which know nothing
 *    of rates share out by rate.
 *
 * The engine is compiled for each policy, so the choice costs no virtual call.
 */
class UbPathPolicy : public Object
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /**
     * Make a plane that follows this policy.
     * @param [in] arrays The fabric.
     * @param [in] plane Which plane of it.
     * @param [in] settings How its links and switches work.
     * @param [in] part Which part of the plane.
     * @return The plane.
     */
    virtual std::unique_ptr<UbPlane> MakePlane(const UbFabricArrays& arrays,
                                               uint32_t plane,
                                               const UbPlaneSettings& settings,
                                               const UbPlanePart& part) const = 0;

    /**
     * @return Whether choices depend on what waits in the ports.
     */
    virtual bool LooksAtPorts() const = 0;
};

/**
 * @ingroup ub-fabric
 * @brief What parts of policies that go round the links of a group have in common.
 */
class UbPathTurns
{
  public:
    /// @param [in] nGroups Number of groups of the plane.
    explicit UbPathTurns(uint32_t nGroups)
        : m_last(nGroups, UB_NONE)
    {
    }

    /**
     * @return Nothing: the turn is kept at the switch.
     */
    uint32_t Hash(const UbInjection& /* injection */) const
    {
        return 0;
    }

    /**
     * @param [in] group The group.
     * @param [in] nLinks Number of links to choose from.
     * @param [in] salt Where the group starts.
     * @param [in] nBefore Packets that choose before.
     * @return Whose turn it is then.
     */
    uint32_t Guess(uint32_t group,
                   uint32_t nLinks,
                   uint64_t salt,
                   uint32_t /* hash */,
                   uint32_t nBefore) const
    {
        return (Next(group, nLinks, salt) + nBefore) % nLinks;
    }

  protected:
    /**
     * Take a turn.
     * @param [in] group The group, whose turn is counted.
     * @param [in] nLinks Number of links to choose from.
     * @param [in] salt Where the group starts, so that switches do not march in step.
     * @return The link whose turn it is.
     */
    uint32_t Take(uint32_t group, uint32_t nLinks, uint64_t salt)
    {
        return m_last[group] = Next(group, nLinks, salt);
    }

  private:
    /**
     * @param [in] group The group.
     * @param [in] nLinks Number of links to choose from.
     * @param [in] salt Where the group starts.
     * @return Whose turn it is.
     */
    uint32_t Next(uint32_t group, uint32_t nLinks, uint64_t salt) const
    {
        const uint32_t turn = m_last[group];
        return turn == UB_NONE ? UbReduce(UbMix(salt), nLinks) : (turn + 1 < nLinks ? turn + 1 : 0);
    }

    std::vector<uint32_t> m_last; //!< last turn of each group
};

} // namespace ns3

#endif // UB_PATH_POLICY_H
