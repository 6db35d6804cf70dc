// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-plane-parts.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <utility>

namespace ns3
{

namespace
{

/// Shortest cable that is cut: below, threads would talk more than they work.
constexpr int64_t SHORTEST_CUT_PS = 5'000;

/// About what packets have, where it matters how many there are.
constexpr uint64_t PACKET_BYTES = 4096;

/// Most work of a part, over its share, for which cables are cut.
constexpr double MOST_WORK = 1.25;

/// Nodes that belong together.
class Clusters
{
  public:
    /// @param [in] n Number of nodes.
    explicit Clusters(uint32_t n)
        : m_parent(n)
    {
        std::iota(m_parent.begin(), m_parent.end(), 0U);
    }

    /**
     * @param [in] node A node.
     * @return The lowest node of its cluster.
     */
    uint32_t Of(uint32_t node)
    {
        while (m_parent[node] != node)
        {
            m_parent[node] = m_parent[m_parent[node]];
            node = m_parent[node];
        }
        return node;
    }

    /**
     * Put two clusters together.
     * @param [in] a A node of one.
     * @param [in] b A node of the other.
     */
    void Join(uint32_t a, uint32_t b)
    {
        const uint32_t ofA = Of(a);
        const uint32_t ofB = Of(b);
        m_parent[std::max(ofA, ofB)] = std::min(ofA, ofB);
    }

  private:
    std::vector<uint32_t> m_parent; //!< a node of the same cluster, lower or itself
};

/**
 * Share clusters out among parts. Neighbours stay together, those with endpoints and those without
 * each for itself: so parts have leaves and spines alike.
 * @param [in,out] clusters The clusters.
 * @param [in] work By node: its work.
 * @param [in] isEndpoint By node: 1 for endpoints.
 * @param [in] nParts Number of parts.
 * @return By node: its part.
 */
std::vector<uint32_t>
ShareOut(Clusters& clusters,
         const std::vector<uint64_t>& work,
         const uint8_t* isEndpoint,
         uint32_t nParts)
{
    const auto nNodes = static_cast<uint32_t>(work.size());
    std::vector<uint64_t> workOf(nNodes, 0); // by cluster, as are the next two
    std::vector<uint8_t> hasEndpoint(nNodes, 0);
    std::vector<uint32_t> partOf(nNodes, 0);
    for (uint32_t node = 0; node < nNodes; ++node)
    {
        const uint32_t cluster = clusters.Of(node);
        workOf[cluster] += work[node];
        hasEndpoint[cluster] |= isEndpoint[node];
    }
    std::array<uint64_t, 2> total{}; // without endpoints and with
    for (uint32_t cluster = 0; cluster < nNodes; ++cluster)
    {
        total[hasEndpoint[cluster]] += workOf[cluster];
    }
    std::array<uint64_t, 2> before{};
    for (uint32_t cluster = 0; cluster < nNodes; ++cluster)
    {
        if (workOf[cluster] > 0)
        {
            const uint8_t kind = hasEndpoint[cluster];
            const uint64_t middle = 2 * before[kind] + workOf[cluster];
            partOf[cluster] = static_cast<uint32_t>(middle * nParts / (2 * total[kind]));
            before[kind] += workOf[cluster];
        }
    }
    std::vector<uint32_t> ofNode(nNodes);
    for (uint32_t node = 0; node < nNodes; ++node)
    {
        ofNode[node] = partOf[clusters.Of(node)];
    }
    return ofNode;
}

} // namespace

UbPlaneSplit
UbSplitPlane(const UbFabricArrays& arrays, uint32_t plane, uint32_t nParts, uint64_t leastHops)
{
    double hopsPerPs = 0;
    std::vector<uint32_t> links;
    std::set<int64_t> delaysPs;
    std::vector<uint64_t> work(arrays.nNodes, 0); // by node: links that leave it
    for (uint32_t link = 0; link < arrays.nLinks; ++link)
    {
        if (arrays.linkPlane[link] == plane)
        {
            links.push_back(link);
            ++work[arrays.linkSrc[link]];
            hopsPerPs +=
                1.0 /
                static_cast<double>(
                    std::max<int64_t>(UbSerialisePs(PACKET_BYTES, arrays.linkBytesPerS[link]), 1));
            if (arrays.linkDelayPs[link] >= SHORTEST_CUT_PS)
            {
                delaysPs.insert(arrays.linkDelayPs[link]);
            }
        }
    }
    for (; nParts > 1; --nParts)
    {
        for (auto lookahead = delaysPs.rbegin(); lookahead != delaysPs.rend(); ++lookahead)
        {
            if (hopsPerPs * static_cast<double>(*lookahead) <
                static_cast<double>(leastHops) * nParts)
            {
                break; // shorter cables are worse
            }
            Clusters clusters(arrays.nNodes);
            for (const uint32_t link : links)
            {
                const uint32_t src = arrays.linkSrc[link];
                const uint32_t dst = arrays.linkDst[link];
                if (arrays.nodeIsEndpoint[src] != 0 || arrays.nodeIsEndpoint[dst] != 0 ||
                    arrays.linkDelayPs[link] < *lookahead)
                {
                    clusters.Join(src, dst);
                }
            }
            const std::vector<uint32_t> partOf =
                ShareOut(clusters, work, arrays.nodeIsEndpoint, nParts);
            std::vector<uint64_t> workOfPart(nParts, 0);
            for (uint32_t node = 0; node < arrays.nNodes; ++node)
            {
                workOfPart[partOf[node]] += work[node];
            }
            const uint64_t most = *std::max_element(workOfPart.begin(), workOfPart.end());
            if (static_cast<double>(most) * nParts > MOST_WORK * static_cast<double>(links.size()))
            {
                continue;
            }
            return {std::make_shared<const std::vector<uint32_t>>(partOf), nParts, *lookahead};
        }
    }
    return {};
}

UbPlaneParts::UbPlaneParts(std::vector<UbPlane*> parts, int64_t lookaheadPs)
    : m_parts(std::move(parts)),
      m_lookaheadPs(lookaheadPs),
      m_progress(std::make_unique<Progress[]>(m_parts.size())),
      m_boxes(2 * m_parts.size() * m_parts.size())
{
}

void
UbPlaneParts::RunBefore(int64_t limitPs)
{
    if (m_parts.size() == 1)
    {
        m_parts[0]->RunBefore(limitPs);
        return;
    }
    while (true)
    {
        int64_t nextPs = UB_NEVER;
        for (UbPlane* part : m_parts)
        {
            nextPs = std::min(nextPs, part->NextTime());
        }
        if (nextPs >= limitPs)
        {
            return;
        }
        const int64_t endPs = limitPs - nextPs <= m_lookaheadPs ? limitPs : nextPs + m_lookaheadPs;
        for (UbPlane* part : m_parts)
        {
            part->RunBefore(endPs);
        }
        for (UbPlane* part : m_parts)
        {
            for (size_t to = 0; to < m_parts.size(); ++to)
            {
                m_parts[to]->Enter(part->Leaving()[to], endPs);
            }
        }
    }
}

void
UbPlaneParts::Begin(int64_t fromPs)
{
    for (size_t part = 0; part < m_parts.size(); ++part)
    {
        m_progress[part].steps = 0;
        m_progress[part].reachedPs = fromPs;
    }
}

UbProgress
UbPlaneParts::Move(uint32_t number, int64_t limitPs)
{
    UbPlane& part = *m_parts[number];
    Progress& own = m_progress[number];
    bool hasMoved = false;
    while (own.reachedPs < limitPs)
    {
        const uint64_t step = own.steps.load(std::memory_order_relaxed);
        for (size_t other = 0; other < m_parts.size(); ++other)
        {
            // who has done as many steps has written what crossed in the last one, and has read
            // what this one is going to write over
            if (m_progress[other].steps.load(std::memory_order_acquire) < step)
            {
                return hasMoved ? UB_MOVED : UB_WAITS;
            }
        }
        for (size_t other = 0; step > 0 && other < m_parts.size(); ++other)
        {
            part.Enter(Box(other, number, step - 1), own.reachedPs);
        }
        own.reachedPs =
            limitPs - own.reachedPs <= m_lookaheadPs ? limitPs : own.reachedPs + m_lookaheadPs;
        part.RunBefore(own.reachedPs);
        for (size_t other = 0; other < m_parts.size(); ++other)
        {
            std::swap(part.Leaving()[other], Box(number, other, step));
        }
        own.steps.store(step + 1, std::memory_order_release);
        hasMoved = true;
    }
    return UB_OVER;
}

void
UbPlaneParts::End()
{
    for (size_t to = 0; to < m_parts.size(); ++to)
    {
        for (size_t from = 0; from < m_parts.size(); ++from)
        {
            m_parts[to]->Enter(Box(from, to, 0), m_progress[to].reachedPs);
            m_parts[to]->Enter(Box(from, to, 1), m_progress[to].reachedPs);
        }
    }
}

} // namespace ns3
