// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PLANE_EXCHANGE_H
#define UB_PLANE_EXCHANGE_H

#include "ns3/object.h"

#include <cstdint>
#include <string>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Who of several processes runs which plane, and how they tell each other what came of it.
 *
 * Each process (rank) builds the same fabric. The calls below are collective: all ranks make them
 * in the same order, and each waits for the others. UbMpiExchange is the one over MPI.
 */
class UbPlaneExchange : public Object
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /// @return Number of this process.
    virtual uint32_t GetRank() const = 0;
    /// @return Number of processes.
    virtual uint32_t GetSize() const = 0;

    /**
     * Send some bytes to all ranks and get theirs.
     * @param [in] mine The bytes.
     * @param [out] all By rank: its bytes, one's own included.
     */
    virtual void Gather(const std::string& mine, std::vector<std::string>& all) = 0;

    /**
     * Add numbers up over all ranks.
     * @param [in,out] values The numbers; afterwards the sums.
     */
    virtual void Sum(std::vector<uint64_t>& values) = 0;

    /**
     * @param [in] nPlanes Number of planes.
     * @return By plane: the rank that runs it.
     */
    std::vector<uint32_t> Owners(uint32_t nPlanes) const;

    /**
     * @return Whether each rank runs the ordinary events of its own nodes only, else all run all.
     */
    bool SpreadsNodes() const;

  private:
    std::string m_owners;       //!< attribute
    bool m_spreadsNodes{false}; //!< attribute
};

} // namespace ns3

#endif // UB_PLANE_EXCHANGE_H
