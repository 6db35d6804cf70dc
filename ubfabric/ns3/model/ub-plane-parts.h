// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_PARTS_H
#define UB_PLANE_PARTS_H

#include "ub-plane.h"
#include "ub-workers.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace ns3
{

/// How the nodes of a plane are shared out among processes.
struct UbPlaneSplit
{
    std::shared_ptr<const std::vector<uint32_t>> ofNode; //!< by node: its part
    uint32_t nParts{1};                                  //!< how many parts, 1 for no split
    int64_t lookaheadPs{UB_NEVER}; //!< the shortest cable from one part to another
};

/**
 * @ingroup ub-fabric
 * @brief Share out the nodes of a plane.
 *
 * Endpoints stay with the switches that they are attached to. Cables as long as can be are cut
 * for which parts are about equally large.
 *
 * @param [in] arrays The fabric.
 * @param [in] plane Which plane of it.
 * @param [in] nParts Parts wanted.
 * @param [in] leastHops Packet-hops that a part should have to do while a packet is on the shortest
 * cable that is cut, if all links are busy.
 * @return As many parts as are possible, or none.
 */
UbPlaneSplit UbSplitPlane(const UbFabricArrays& arrays,
                          uint32_t plane,
                          uint32_t nParts,
                          uint64_t leastHops);

/**
 * @ingroup ub-fabric
 * @brief Processes that share the work of one plane; one, as a rule.
 *
 * Whatever one part does has an effect on another only after the delay of a cable, packets as well
 * as credits. So parts run steps as long as the shortest cable between them at the same time, and
 * tell each other what crosses after each step. Events leave their queues in an order given by
 * what they are, and what crosses is applied by time; so results are those of the whole plane.
 */
class UbPlaneParts
{
  public:
    /**
     * @param [in] parts The parts.
     * @param [in] lookaheadPs The shortest cable from one to another.
     */
    UbPlaneParts(std::vector<UbPlane*> parts, int64_t lookaheadPs);

    /**
     * @return The parts.
     */
    const std::vector<UbPlane*>& Parts() const
    {
        return m_parts;
    }

    /**
     * Process all events of all parts before a time, on one thread.
     * @param [in] limitPs The time.
     */
    void RunBefore(int64_t limitPs);

    /**
     * Have parts run on several threads from now on.
     * @param [in] fromPs How far they have come.
     */
    void Begin(int64_t fromPs);

    /**
     * Let a part run as far as the others let it; other threads may move others.
     * @param [in] part Which.
     * @param [in] limitPs How far it may go; the same for all parts, one time after another.
     * @return UB_OVER when it has come so far.
     */
    UbProgress Move(uint32_t part, int64_t limitPs);

    /// Let parts take in what crossed in the last step, when all have come equally far.
    void End();

  private:
    /// How far a part has come. Parts do not share a line of the cache.
    struct alignas(64) Progress
    {
        std::atomic<uint64_t> steps{0}; //!< steps done
        int64_t reachedPs{0};           //!< time reached; the part's own
    };

    /**
     * @param [in] from A part.
     * @param [in] to Another.
     * @param [in] step A step.
     * @return What crosses from one to the other in it; the same for one that is two later.
     */
    UbPlane::Crossing& Box(size_t from, size_t to, uint64_t step)
    {
        return m_boxes[(from * m_parts.size() + to) * 2 + step % 2];
    }

    std::vector<UbPlane*> m_parts;          //!< the parts
    int64_t m_lookaheadPs;                  //!< length of a step
    std::unique_ptr<Progress[]> m_progress; //!< by part
    std::vector<UbPlane::Crossing> m_boxes; //!< [from][to][step % 2] what crosses
};

} // namespace ns3

#endif // UB_PLANE_PARTS_H
