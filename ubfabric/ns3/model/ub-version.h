/*
 * SPDX-License-Identifier: GPL-2.0-only
 */

#ifndef UB_VERSION_H
#define UB_VERSION_H

#include "ns3/object.h"

#include <string>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Identity of the compiled module.
 *
 * The Python package compares it with its own version before a run, since a library
 * left over from an earlier build would otherwise read arrays of another layout.
 */
class UbVersion : public Object
{
  public:
    /**
     * @brief Get the type ID.
     * @return the object TypeId
     */
    static TypeId GetTypeId();

    /**
     * @brief Version of the Python package that the library was built for.
     * @return the version, or "contrib" if built inside an ns-3 source tree
     */
    static std::string GetPackageVersion();

    /**
     * @brief Time resolution in force when the library's TypeIds were registered.
     *
     * ns-3 cuts the Time defaults of attributes to the resolution in force at
     * registration, so it must have been picoseconds by then.
     *
     * @return a value of Time::Unit
     */
    static int GetRegistrationResolution();
};

} // namespace ns3

#endif /* UB_VERSION_H */
