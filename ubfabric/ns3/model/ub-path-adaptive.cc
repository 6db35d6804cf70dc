// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each packet takes the link that will be free for it first, as far as the chip can tell.
 *
 * A chip sees what waits in its own ports and the credits it holds, and nothing beyond. Of equal
 * links the next in turn is taken.
 */
class UbPathAdaptive : public UbPathPolicyOf<UbPathAdaptive>
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPathAdaptive")
                                .SetParent<UbPathPolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPathAdaptive>();
        return tid;
    }

    /// The part that lives in a plane.
    struct InPlane : UbPathTurns
    {
        using UbPathTurns::UbPathTurns;

        /// Whether Choose wants to know what waits in the ports.
        static constexpr bool LOOKS_AT_PORTS = true;

        /**
         * @tparam Backlog What says how long a port is busy.
         * @param [in] group The group, whose turn is counted.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts, so that switches do not march in step.
         * @param [in] backlogPs How long the port of a choice is busy.
         * @return The choice.
         */
        template <class Backlog>
        uint32_t Choose(uint32_t group,
                        uint32_t nLinks,
                        uint64_t salt,
                        uint32_t /* hash */,
                        const Backlog& backlogPs)
        {
            const uint32_t turn = Take(group, nLinks, salt);
            uint32_t best = turn;
            int64_t leastPs = backlogPs(turn);
            for (uint32_t step = 1; step < nLinks && leastPs > 0; ++step)
            {
                const uint32_t choice = turn + step < nLinks ? turn + step : turn + step - nLinks;
                const int64_t choicePs = backlogPs(choice);
                if (choicePs < leastPs)
                {
                    leastPs = choicePs;
                    best = choice;
                }
            }
            return best;
        }
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathAdaptive);

} // namespace ns3
