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
    struct InPlane
    {
        /// Whether Choose wants to know what waits in the ports.
        static constexpr bool LOOKS_AT_PORTS = true;

        /// @param [in] nGroups Number of groups of the plane.
        explicit InPlane(uint32_t nGroups)
            : next(nGroups, UB_NONE)
        {
        }

        /**
         * @return Nothing: the ports decide.
         */
        uint32_t Hash(const UbInjection& /* injection */) const
        {
            return 0;
        }

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
            uint32_t& turn = next[group];
            turn = Next(group, nLinks, salt);
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

        /**
         * @param [in] group The group.
         * @param [in] nLinks Number of links to choose from.
         * @param [in] salt Where the group starts.
         * @param [in] nBefore Packets that choose before.
         * @return What Choose would look at first then.
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

        std::vector<uint32_t> next; //!< last turn of each group
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathAdaptive);

} // namespace ns3
