// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each switch deals its packets out over the paths in turn.
 */
class UbPathRoundRobin : public UbPathPolicyOf<UbPathRoundRobin>
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPathRoundRobin")
                                .SetParent<UbPathPolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPathRoundRobin>();
        return tid;
    }

    /// The part that lives in a plane.
    struct InPlane : UbPathTurns
    {
        using UbPathTurns::UbPathTurns;

        /// Whether Choose wants to know what waits in the ports.
        static constexpr bool LOOKS_AT_PORTS = false;

        /**
         * @param [in] group The group, whose turn is counted.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts, so that switches do not march in step.
         * @return The choice.
         */
        uint32_t Choose(uint32_t group, uint32_t nLinks, uint64_t salt, uint32_t /* hash */)
        {
            return Take(group, nLinks, salt);
        }
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathRoundRobin);

} // namespace ns3
