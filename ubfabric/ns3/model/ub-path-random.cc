// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-path-policy.h"
#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each packet takes a path at random, given by the seed.
 */
class UbPathRandom : public UbPathPolicy
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPathRandom")
                                .SetParent<UbPathPolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPathRandom>();
        return tid;
    }

    /// The part that lives in a plane.
    struct InPlane
    {
        /// @param [in] nGroups Number of groups of the plane.
        explicit InPlane(uint32_t nGroups [[maybe_unused]])
        {
        }

        /**
         * @param [in] injection A packet to come.
         * @return The packet's hash.
         */
        uint32_t Hash(const UbInjection& injection) const
        {
            return static_cast<uint32_t>(injection.packetHash);
        }

        /**
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Differs from group to group, so that choices are independent.
         * @param [in] hash The packet's hash.
         * @return The choice.
         */
        uint32_t Choose(uint32_t /* group */, uint32_t nLinks, uint64_t salt, uint32_t hash) const
        {
            return UbReduce(UbMix(salt ^ hash), nLinks);
        }
    };

    std::unique_ptr<UbPlane> MakePlane(const UbFabricArrays& arrays,
                                       uint32_t plane,
                                       uint32_t nLanes,
                                       uint64_t seed) const override
    {
        return std::make_unique<UbPlaneEngine<UbPathRandom>>(arrays, plane, nLanes, seed);
    }
};

NS_OBJECT_ENSURE_REGISTERED(UbPathRandom);

} // namespace ns3
