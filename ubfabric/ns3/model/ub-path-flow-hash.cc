// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-engine.h"

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief All packets of a pair of endpoints take one path, given by a hash.
 */
class UbPathFlowHash : public UbPathPolicyOf<UbPathFlowHash>
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("ns3::UbPathFlowHash")
                                .SetParent<UbPathPolicy>()
                                .SetGroupName("UbFabric")
                                .AddConstructor<UbPathFlowHash>();
        return tid;
    }

    /// The part that lives in a plane.
    struct InPlane : UbHashedChoice
    {
        using UbHashedChoice::UbHashedChoice;

        /**
         * @param [in] injection A packet to come.
         * @return The flow's hash.
         */
        uint32_t Hash(const UbInjection& injection) const
        {
            return static_cast<uint32_t>(injection.flowHash);
        }
    };
};

NS_OBJECT_ENSURE_REGISTERED(UbPathFlowHash);

} // namespace ns3
