// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-partition.h"

#include "ns3/abort.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace ns3
{

namespace
{

/**
 * Write records as they lie in memory.
 * @tparam T What they are.
 * @param [in] records The first record.
 * @param [in] n How many.
 * @param [in,out] bytes Where to append them.
 */
template <class T>
void
Append(const T* records, size_t n, std::string& bytes)
{
    static_assert(std::is_trivially_copyable_v<T>, "records travel byte by byte");
    bytes.append(reinterpret_cast<const char*>(records), n * sizeof(T));
}

/**
 * Read what Append wrote.
 * @tparam T What the records are.
 * @param [in,out] from Where they begin; afterwards where they end.
 * @param [in] n How many.
 * @param [out] records Where to put them.
 */
template <class T>
void
Extract(const char*& from, size_t n, T* records)
{
    if (n > 0)
    {
        std::memcpy(static_cast<void*>(records), from, n * sizeof(T));
        from += n * sizeof(T);
    }
}

} // namespace

void
UbPlanesStatus::Add(const UbPlanesStatus& other)
{
    nextPs = std::min(nextPs, other.nextPs);
    lastPs = std::max(lastPs, other.lastPs);
    packetHops += other.packetHops;
    packetsLost += other.packetsLost;
    inside += other.inside;
    events += other.events;
    broken += other.broken;
    isObserved |= other.isObserved;
}

UbPartition::UbPartition(Ptr<UbPlaneExchange> exchange, uint32_t nPlanes)
    : m_exchange(exchange),
      m_rank(exchange->GetRank()),
      m_spreadsNodes(exchange->SpreadsNodes()),
      m_owners(exchange->Owners(nPlanes))
{
}

void
UbPartition::Expect(const UbInjections& injections)
{
    m_agreed.inside += injections.size();
    for (const UbInjection& injection : injections)
    {
        Expect(injection.readyPs);
    }
}

void
UbPartition::Expect(int64_t timePs)
{
    m_agreed.nextPs = std::min(m_agreed.nextPs, timePs);
}

void
UbPartition::Exchange(const UbPlanesStatus& own, std::vector<UbArrived>& arrived)
{
    m_mine.clear();
    Append(&own, 1, m_mine);
    for (uint32_t plane = 0; plane < m_owners.size(); ++plane)
    {
        if (Owns(plane))
        {
            const uint64_t counts[2]{arrived[plane].packets.size(), arrived[plane].accounts.size()};
            Append(counts, 2, m_mine);
            Append(arrived[plane].packets.data(), counts[0], m_mine);
            Append(arrived[plane].accounts.data(), counts[1], m_mine);
        }
    }
    m_exchange->Gather(m_mine, m_all);
    m_agreed = UbPlanesStatus();
    m_hasAgreed = true;
    for (uint32_t rank = 0; rank < m_all.size(); ++rank)
    {
        const char* from = m_all[rank].data();
        UbPlanesStatus status;
        Extract(from, 1, &status);
        NS_ABORT_MSG_IF(status.step != own.step,
                        "rank " << rank << " is out of step with rank " << m_rank
                                << ": all ranks must build the same fabric, load the same chunks "
                                   "and make the same calls");
        m_agreed.Add(status);
        for (uint32_t plane = 0; plane < m_owners.size(); ++plane)
        {
            if (m_owners[plane] == rank && rank != m_rank)
            {
                uint64_t counts[2];
                Extract(from, 2, counts);
                arrived[plane].packets.resize(counts[0]);
                arrived[plane].accounts.resize(counts[1]);
                Extract(from, counts[0], arrived[plane].packets.data());
                Extract(from, counts[1], arrived[plane].accounts.data());
            }
        }
    }
}

void
UbPartition::Agree(const UbPlanesStatus& own)
{
    std::vector<UbArrived> none(m_owners.size());
    Exchange(own, none);
}

void
UbPartition::Sum(std::vector<uint64_t>& values)
{
    m_exchange->Sum(values);
}

const std::vector<std::string>&
UbPartition::Gather(const std::string& mine)
{
    m_exchange->Gather(mine, m_all);
    return m_all;
}

std::string
UbPartition::Join(const std::string& text)
{
    m_exchange->Gather(text, m_all);
    std::string joined;
    for (const std::string& part : m_all)
    {
        joined += part;
    }
    return joined;
}

} // namespace ns3
