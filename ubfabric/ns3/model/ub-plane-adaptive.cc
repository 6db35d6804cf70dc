// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-policy.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each packet goes to the plane whose port of the source has least to send.
 *
 * Of equal ports the next in turn is taken.
 */
class UbPlaneAdaptive : public UbPlanePolicy
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPlaneAdaptive")
                                .SetParent<UbPlanePolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPlaneAdaptive>();
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
                    const int64_t* backlogPs) override
    {
        const uint32_t turn = m_turns.Next(endpoint, nPlanes);
        uint32_t best = turn;
        for (uint32_t step = 1; step < nPlanes; ++step)
        {
            const uint32_t choice = (turn + step) % nPlanes;
            best = backlogPs[choice] < backlogPs[best] ? choice : best;
        }
        return best;
    }

    bool LooksAtPorts() const override
    {
        return true;
    }

  private:
    UbPlaneTurns m_turns; //!< whose turn it is where ports are equal
};

NS_OBJECT_ENSURE_REGISTERED(UbPlaneAdaptive);

} // namespace ns3
