// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-mpi-exchange.h"

#include "ns3/abort.h"
#include "ns3/mpi-interface.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace ns3
{

NS_OBJECT_ENSURE_REGISTERED(UbMpiExchange);

TypeId
UbMpiExchange::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbMpiExchange")
                            .SetParent<UbPlaneExchange>()
                            .SetGroupName("UbFabric")
                            .AddConstructor<UbMpiExchange>();
    return tid;
}

UbMpiExchange::UbMpiExchange()
{
    NS_ABORT_MSG_IF(!MpiInterface::IsEnabled(), "UbMpiExchange needs MpiInterface::Enable before");
    MPI_Comm_dup(MpiInterface::GetCommunicator(), &m_communicator);
    MPI_Comm_rank(m_communicator, &m_rank);
    MPI_Comm_size(m_communicator, &m_size);
    m_short.resize(m_size * SHORT_BYTES);
    m_counts.resize(m_size);
    m_positions.resize(m_size);
}

UbMpiExchange::~UbMpiExchange()
{
    int isOver = 0;
    MPI_Finalized(&isOver);
    if (isOver == 0)
    {
        MPI_Comm_free(&m_communicator);
    }
}

uint32_t
UbMpiExchange::GetRank() const
{
    return static_cast<uint32_t>(m_rank);
}

uint32_t
UbMpiExchange::GetSize() const
{
    return static_cast<uint32_t>(m_size);
}

void
UbMpiExchange::Gather(const std::string& mine, std::vector<std::string>& all)
{
    constexpr size_t room = SHORT_BYTES - sizeof(uint64_t);
    const uint64_t bytes = mine.size();
    char* const own = &m_short[m_rank * SHORT_BYTES];
    std::memcpy(own, &bytes, sizeof(bytes));
    std::memcpy(own + sizeof(bytes), mine.data(), std::min(mine.size(), room));
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, m_short.data(), SHORT_BYTES, MPI_BYTE, m_communicator);
    uint64_t total = 0;
    bool isShort = true;
    for (int rank = 0; rank < m_size; ++rank)
    {
        uint64_t count;
        std::memcpy(&count, &m_short[rank * SHORT_BYTES], sizeof(count));
        NS_ABORT_MSG_IF(total + count > static_cast<uint64_t>(std::numeric_limits<int>::max()),
                        "more than 2 GiB between the ranks at one time");
        m_counts[rank] = static_cast<int>(count);
        m_positions[rank] = static_cast<int>(total);
        total += count;
        isShort = isShort && count <= room;
    }
    all.resize(m_size);
    if (!isShort)
    {
        m_long.resize(total);
        MPI_Allgatherv(mine.data(),
                       m_counts[m_rank],
                       MPI_BYTE,
                       m_long.data(),
                       m_counts.data(),
                       m_positions.data(),
                       MPI_BYTE,
                       m_communicator);
    }
    for (int rank = 0; rank < m_size; ++rank)
    {
        const char* const from = isShort ? &m_short[rank * SHORT_BYTES + sizeof(uint64_t)]
                                         : m_long.data() + m_positions[rank];
        all[rank].assign(from, m_counts[rank]);
    }
}

void
UbMpiExchange::Sum(std::vector<uint64_t>& values)
{
    NS_ABORT_MSG_IF(values.size() > static_cast<size_t>(std::numeric_limits<int>::max()),
                    "too many numbers to add up at one time");
    MPI_Allreduce(MPI_IN_PLACE,
                  values.data(),
                  static_cast<int>(values.size()),
                  MPI_UINT64_T,
                  MPI_SUM,
                  m_communicator);
}

} // namespace ns3
