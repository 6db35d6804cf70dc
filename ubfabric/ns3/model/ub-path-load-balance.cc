// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Switches hash the pair of endpoints and UB's load-balance factor.
 *
 * The sender puts eight bits into the network header and switches choose among equal outputs by
 * a hash over the addresses and those bits (UB Base Specification 2.0, section 5). As ns-3-UB
 * does for load and store, the sender counts the factor up from packet to packet, so a flow
 * spreads over 256 hashed paths.
 */
class UbPathLoadBalance : public UbPathPolicyOf<UbPathLoadBalance>
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPathLoadBalance")
                                .SetParent<UbPathPolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPathLoadBalance>();
        return tid;
    }

    /// The part that lives in a plane.
    struct InPlane : UbHashedChoice
    {
        using UbHashedChoice::UbHashedChoice;

        /**
         * @param [in] injection A packet to come.
         * @return The pair's hash with the packet's factor.
         */
        uint32_t Hash(const UbInjection& injection) const
        {
            return static_cast<uint32_t>(UbMix(injection.flowHash + injection.loadBalance));
        }
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathLoadBalance);

} // namespace ns3
