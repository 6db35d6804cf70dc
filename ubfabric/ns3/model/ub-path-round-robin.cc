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
    struct InPlane
    {
        /// Whether Choose wants to know what waits in the ports.
        static constexpr bool LOOKS_AT_PORTS = false;

        /// @param [in] nGroups Number of groups of the plane.
        explicit InPlane(uint32_t nGroups)
            : next(nGroups, UB_NONE)
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
         * @param [in] group The group, whose turn is counted.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts, so that switches do not march in step.
         * @return The choice.
         */
        uint32_t Choose(uint32_t group, uint32_t nLinks, uint64_t salt, uint32_t /* hash */)
        {
            return next[group] = Next(group, nLinks, salt);
        }

        /**
         * @param [in] group The group.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts.
         * @param [in] nBefore Packets that choose before.
         * @return What Choose would choose then.
         */
        uint32_t Guess(uint32_t group,
                       uint32_t nLinks,
                       uint64_t salt,
                       uint32_t /* hash */,
                       uint32_t nBefore) const
        {
            return (Next(group, nLinks, salt) + nBefore) % nLinks;
        }

        /**
         * @param [in] group The group.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts.
         * @return Whose turn it is.
         */
        uint32_t Next(uint32_t group, uint32_t nLinks, uint64_t salt) const
        {
            const uint32_t turn = next[group];
            return turn == UB_NONE ? UbReduce(UbMix(salt), nLinks)
                                   : (turn + 1 < nLinks ? turn + 1 : 0);
        }

        std::vector<uint32_t> next; //!< last choice of each group
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathRoundRobin);

} // namespace ns3
