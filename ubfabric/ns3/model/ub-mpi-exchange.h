// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_MPI_EXCHANGE_H
#define UB_MPI_EXCHANGE_H

#include "ub-plane-exchange.h"

#include <mpi.h>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Planes spread over the ranks of ns-3's MPI.
 *
 * Make one after MpiInterface::Enable, on every rank. It has a communicator of its own, so that
 * it does not meet the messages of ns-3's remote channels. Ranks must be of one architecture:
 * records travel as they lie in memory.
 */
class UbMpiExchange : public UbPlaneExchange
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /// Take a copy of ns-3's communicator; all ranks together.
    UbMpiExchange();
    ~UbMpiExchange() override;

    // inherited from UbPlaneExchange
    uint32_t GetRank() const override;
    uint32_t GetSize() const override;
    void Gather(const std::string& mine, std::vector<std::string>& all) override;
    void Sum(std::vector<uint64_t>& values) override;

  private:
    static constexpr size_t SHORT_BYTES = 1024; //!< what goes along with the size, in one round

    MPI_Comm m_communicator;      //!< a communicator for this object alone
    int m_rank{0};                //!< number of this process
    int m_size{1};                //!< number of processes
    std::vector<char> m_short;    //!< sizes and first bytes of all ranks
    std::vector<char> m_long;     //!< bytes of all ranks, if there are more
    std::vector<int> m_counts;    //!< by rank: bytes
    std::vector<int> m_positions; //!< by rank: where they begin
};

} // namespace ns3

#endif // UB_MPI_EXCHANGE_H
