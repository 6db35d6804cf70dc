// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-policy.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each source deals its packets out over the planes, one to each plane a round.
 */
class UbPlaneRoundRobin : public UbPlanePolicy
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPlaneRoundRobin")
                                .SetParent<UbPlanePolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPlaneRoundRobin>();
        return tid;
    }

    void Reset(uint32_t nEndpoints, uint64_t seed) override
    {
        m_turns.Reset(nEndpoints, seed);
    }

    uint32_t Choose(uint32_t endpoint,
                    uint32_t nPlanes,
                    uint64_t /* flowHash */,
                    uint64_t /* packetHash */,
                    const int64_t* /* backlogPs */) override
    {
        return m_turns.Next(endpoint, nPlanes);
    }

  private:
    UbPlaneTurns m_turns; //!< whose turn it is
};

NS_OBJECT_ENSURE_REGISTERED(UbPlaneRoundRobin);

} // namespace ns3
