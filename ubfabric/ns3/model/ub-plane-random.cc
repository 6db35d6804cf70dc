// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-policy.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each packet takes a plane at random, given by the seed.
 */
class UbPlaneRandom : public UbPlanePolicy
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPlaneRandom")
                                .SetParent<UbPlanePolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPlaneRandom>();
        return tid;
    }

    void Reset(uint32_t /* nEndpoints */, uint64_t seed) override
    {
        m_salt = UbMix(seed);
    }

    uint32_t Choose(uint32_t /* endpoint */,
                    uint32_t nPlanes,
                    uint64_t /* flowHash */,
                    uint64_t packetHash,
                    const int64_t* /* backlogPs */) override
    {
        return UbReduce(UbMix(m_salt ^ packetHash), nPlanes);
    }

  private:
    uint64_t m_salt{0}; //!< keeps the choice apart from the one made in switches
};

NS_OBJECT_ENSURE_REGISTERED(UbPlaneRandom);

} // namespace ns3
