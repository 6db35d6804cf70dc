// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Each packet takes a path at random, given by the seed.
 */
class UbPathRandom : public UbPathPolicyOf<UbPathRandom>
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
    struct InPlane : UbHashedChoice
    {
        using UbHashedChoice::UbHashedChoice;

        /**
         * @param [in] injection A packet to come.
         * @return The packet's hash.
         */
        uint32_t Hash(const UbInjection& injection) const
        {
            return static_cast<uint32_t>(injection.packetHash);
        }
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathRandom);

} // namespace ns3
