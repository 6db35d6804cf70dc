// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/callback.h"
#include "ns3/uinteger.h"

#include <map>
#include <random>
#include <set>
#include <tuple>

using namespace ns3;

namespace
{

/// Bytes that the fabric adds to a packet in these cases.
constexpr uint32_t HEADER_BYTES = 64;

/// Rate of the links in these cases, in bytes per second.
constexpr uint64_t RATE = 28'000'000'000;

/// Delay of the links in these cases.
constexpr int64_t DELAY_PS = 10'000;

/// Forwarding latency of the switches in these cases.
constexpr int64_t FORWARD_PS = 200'000;

/// Receive latency of an endpoint, the default of the helper.
constexpr int64_t RECEIVE_PS = 1'000;

/**
 * @param [in] nSwitches Switches on the way.
 * @param [in] payloadBytes Bytes of the message.
 * @return Time of a lone message of one packet.
 */
int64_t
LonePs(uint32_t nSwitches, uint32_t payloadBytes)
{
    return (nSwitches + 1) * DELAY_PS + nSwitches * FORWARD_PS +
           UbTestWirePs(payloadBytes + HEADER_BYTES, RATE) + RECEIVE_PS;
}

/// Two levels of switches: endpoints on leaves, each leaf on each spine.
struct LeafSpine
{
    std::vector<uint32_t> left;        //!< endpoints of the first leaf
    std::vector<uint32_t> right;       //!< endpoints of the second leaf
    std::vector<uint32_t> leftUplinks; //!< links from the first leaf to the spines

    /**
     * @param [in,out] helper Where to build it.
     * @param [in] nEndpoints Endpoints of each leaf.
     * @param [in] nSpines Number of spines.
     * @param [in] plane The plane.
     */
    void Build(UbFabricHelper& helper, uint32_t nEndpoints, uint32_t nSpines, uint32_t plane = 0)
    {
        const auto rate = UbTestRate(RATE);
        const auto delay = PicoSeconds(DELAY_PS);
        const auto forward = PicoSeconds(FORWARD_PS);
        const uint32_t leaves[] = {helper.AddSwitch(forward, 65536),
                                   helper.AddSwitch(forward, 65536)};
        uint32_t cable = 0;
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            left.push_back(helper.AddEndpoint());
            helper.Connect(left.back(), leaves[0], plane, rate, delay);
            right.push_back(helper.AddEndpoint());
            helper.Connect(right.back(), leaves[1], plane, rate, delay);
            cable += 2;
        }
        for (uint32_t i = 0; i < nSpines; ++i)
        {
            const uint32_t spine = helper.AddSwitch(forward, 65536);
            helper.Connect(leaves[0], spine, plane, rate, delay);
            leftUplinks.push_back(2 * cable);
            helper.Connect(leaves[1], spine, plane, rate, delay);
            cable += 2;
        }
    }
};

/**
 * Make a helper with this file's header size.
 * @param [in] pathPolicy Name of the path policy.
 * @param [in] planePolicy Name of the plane policy.
 * @param [in] seed The seed.
 * @return The helper.
 */
UbFabricHelper
MakeHelper(const std::string& pathPolicy = "RoundRobin",
           const std::string& planePolicy = "RoundRobin",
           uint64_t seed = 1)
{
    UbFabricHelper helper;
    helper.SetFabricAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
    helper.SetFabricAttribute("PathPolicy", StringValue("ns3::UbPath" + pathPolicy));
    helper.SetFabricAttribute("PlanePolicy", StringValue("ns3::UbPlane" + planePolicy));
    helper.SetFabricAttribute("Seed", UintegerValue(seed));
    return helper;
}

/**
 * Load a chunk and run to the end.
 * @param [in] fabric The fabric.
 * @param [in,out] chunk The chunk.
 */
void
RunChunk(Ptr<UbFabric> fabric, UbTestChunk& chunk)
{
    fabric->AddChunk(chunk.Arrays());
    Simulator::Run();
}

/// Remembers the link of each packet that leaves.
class SentLinks
{
  public:
    /// @param [in] fabric Whom to listen to.
    explicit SentLinks(Ptr<UbFabric> fabric)
    {
        fabric->TraceConnectWithoutContext("PacketSent", MakeCallback(&SentLinks::Sent, this));
    }

    /**
     * @param [in] links Some links.
     * @return The packets on those links in order: position of the link, flow.
     */
    std::vector<std::pair<uint32_t, uint32_t>> On(const std::vector<uint32_t>& links) const
    {
        std::vector<std::pair<uint32_t, uint32_t>> out;
        for (const auto& [link, flow] : m_sent)
        {
            const auto found = std::find(links.begin(), links.end(), link);
            if (found != links.end())
            {
                out.emplace_back(found - links.begin(), flow);
            }
        }
        return out;
    }

  private:
    /**
     * @param [in] link The link.
     * @param [in] flow The flow.
     */
    void Sent(uint32_t link, uint32_t flow, uint32_t /* bytes */)
    {
        m_sent.emplace_back(link, flow);
    }

    std::vector<std::pair<uint32_t, uint32_t>> m_sent; //!< link and flow
};

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief Flow hashing.
 */
class UbPathFlowHashTestCase : public UbTestCase
{
  public:
    UbPathFlowHashTestCase()
        : UbTestCase("flow hash keeps a pair on one path and spreads pairs over all")
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper("FlowHash");
        LeafSpine tree;
        tree.Build(helper, 8, 4);
        const auto fabric = helper.Build();
        const SentLinks sent(fabric);
        UbTestChunk chunk;
        for (const uint32_t src : tree.left)
        {
            for (const uint32_t dst : tree.right)
            {
                chunk.AddFlow(src, dst, 5, 3 * 4096);
            }
        }
        RunChunk(fabric, chunk);
        std::map<uint32_t, std::set<uint32_t>> pathsOfFlow;
        std::map<uint32_t, uint32_t> flowsOfPath;
        for (const auto& [path, flow] : sent.On(tree.leftUplinks))
        {
            flowsOfPath[path] += pathsOfFlow[flow].insert(path).second ? 1 : 0;
        }
        NS_TEST_ASSERT_MSG_EQ(pathsOfFlow.size(), 64, "all flows went up");
        for (const auto& [flow, paths] : pathsOfFlow)
        {
            NS_TEST_ASSERT_MSG_EQ(paths.size(), 1, "paths of flow " << flow);
        }
        NS_TEST_ASSERT_MSG_EQ(flowsOfPath.size(), 4, "all paths are used");
        for (const auto& [path, flows] : flowsOfPath)
        {
            // 16 expected, standard deviation 3.5
            NS_TEST_ASSERT_MSG_EQ_TOL(flows, 16.0, 12.0, "flows of path " << path);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Round robin over paths.
 */
class UbPathRoundRobinTestCase : public UbTestCase
{
  public:
    UbPathRoundRobinTestCase()
        : UbTestCase("round robin gives each path the same number of packets, in turn")
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper("RoundRobin");
        LeafSpine tree;
        tree.Build(helper, 2, 4);
        const auto fabric = helper.Build();
        const SentLinks sent(fabric);
        UbTestChunk chunk;
        chunk.AddFlow(tree.left[0], tree.right[0], 40, 4096);
        RunChunk(fabric, chunk);
        std::map<uint32_t, uint32_t> count;
        std::vector<uint32_t> order;
        for (const auto& [path, flow] : sent.On(tree.leftUplinks))
        {
            ++count[path];
            order.push_back(path);
        }
        for (uint32_t path = 0; path < 4; ++path)
        {
            NS_TEST_ASSERT_MSG_EQ(count[path], 10, "packets of path " << path);
        }
        for (uint32_t i = 4; i < order.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(order[i], order[i - 4], "turn " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Random paths.
 */
class UbPathRandomTestCase : public UbTestCase
{
  public:
    UbPathRandomTestCase()
        : UbTestCase("random paths are uniform, the same for one seed and others for another")
    {
    }

  private:
    /**
     * @param [in] seed The seed.
     * @return Paths of packets in order.
     */
    std::vector<std::pair<uint32_t, uint32_t>> Paths(uint64_t seed)
    {
        UbStartSimulation();
        auto helper = MakeHelper("Random", "Random", seed);
        LeafSpine tree;
        tree.Build(helper, 1, 4);
        const auto fabric = helper.Build();
        const SentLinks sent(fabric);
        UbTestChunk chunk;
        chunk.AddFlow(tree.left[0], tree.right[0], 4000, 64);
        RunChunk(fabric, chunk);
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        auto paths = sent.On(tree.leftUplinks);
        fabric->Dispose();
        return paths;
    }

    void DoRun() override
    {
        const auto first = Paths(1);
        std::map<uint32_t, uint32_t> count;
        std::map<std::pair<uint32_t, uint32_t>, uint32_t> pairs;
        for (uint32_t i = 0; i < first.size(); ++i)
        {
            ++count[first[i].first];
            if (i > 0)
            {
                ++pairs[{first[i - 1].first, first[i].first}];
            }
        }
        for (uint32_t path = 0; path < 4; ++path)
        {
            // standard deviation 27.4
            NS_TEST_ASSERT_MSG_EQ_TOL(count[path], 1000.0, 137.0, "packets of path " << path);
            for (uint32_t next = 0; next < 4; ++next)
            {
                // a choice says nothing of the next one; standard deviation 15.3
                const double n = pairs[{path, next}];
                NS_TEST_ASSERT_MSG_EQ_TOL(n, 250.0, 77.0, path << " then " << next);
            }
        }
        NS_TEST_ASSERT_MSG_EQ((Paths(1) == first), true, "the same seed");
        NS_TEST_ASSERT_MSG_EQ((Paths(2) == first), false, "another seed");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Choice of the plane.
 */
class UbPlanePolicyTestCase : public UbTestCase
{
  public:
    UbPlanePolicyTestCase()
        : UbTestCase("the plane is dealt in turn, at random, or kept by a pair, as the policy says")
    {
    }

  private:
    /**
     * Count the planes of packets.
     * @param [in] policy Name of the policy.
     * @param [in] seed The seed.
     * @return By flow and plane: packets.
     */
    std::map<uint32_t, std::map<uint32_t, uint32_t>> Count(const std::string& policy, uint64_t seed)
    {
        UbStartSimulation();
        auto helper = MakeHelper("RoundRobin", policy, seed);
        constexpr uint32_t nPlanes = 7;
        constexpr uint32_t nEndpoints = 9;
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            helper.AddEndpoint();
        }
        std::vector<uint32_t> uplinks;
        uint32_t cable = 0;
        for (uint32_t plane = 0; plane < nPlanes; ++plane)
        {
            const uint32_t hub = helper.AddSwitch(PicoSeconds(FORWARD_PS), 65536);
            for (uint32_t i = 0; i < nEndpoints; ++i)
            {
                helper.Connect(i, hub, plane, UbTestRate(RATE), PicoSeconds(DELAY_PS));
                uplinks.push_back(2 * cable++);
            }
        }
        const auto fabric = helper.Build();
        const SentLinks sent(fabric);
        UbTestChunk chunk;
        for (uint32_t dst = 1; dst < nEndpoints; ++dst)
        {
            chunk.AddFlow(0, dst, 700, 64);
        }
        RunChunk(fabric, chunk);
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        std::map<uint32_t, std::map<uint32_t, uint32_t>> count;
        for (const auto& [at, flow] : sent.On(uplinks))
        {
            ++count[flow][at / nEndpoints];
        }
        fabric->Dispose();
        return count;
    }

    void DoRun() override
    {
        std::map<uint32_t, uint32_t> total;
        for (const auto& [flow, planes] : Count("RoundRobin", 1))
        {
            for (const auto& [plane, n] : planes)
            {
                total[plane] += n;
            }
        }
        for (uint32_t plane = 0; plane < 7; ++plane)
        {
            NS_TEST_ASSERT_MSG_EQ(total[plane], 800, "round robin, plane " << plane);
        }
        const auto random = Count("Random", 1);
        for (const auto& [flow, planes] : random)
        {
            NS_TEST_ASSERT_MSG_EQ(planes.size(), 7, "random uses all planes for flow " << flow);
            for (const auto& [plane, n] : planes)
            {
                // standard deviation 9.3
                NS_TEST_ASSERT_MSG_EQ_TOL(n, 100.0, 47.0, "random, plane " << plane);
            }
        }
        NS_TEST_ASSERT_MSG_EQ((Count("Random", 1) == random), true, "the same seed");
        NS_TEST_ASSERT_MSG_EQ((Count("Random", 2) == random), false, "another seed");
        std::set<uint32_t> used;
        for (const auto& [flow, planes] : Count("FlowHash", 1))
        {
            NS_TEST_ASSERT_MSG_EQ(planes.size(), 1, "flow hash keeps flow " << flow);
            used.insert(planes.begin()->first);
        }
        NS_TEST_ASSERT_MSG_GT(used.size(), 2, "flow hash spreads pairs");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Direct links, and a copy within an endpoint.
 */
class UbDirectLinkTestCase : public UbTestCase
{
  public:
    UbDirectLinkTestCase()
        : UbTestCase("a direct link is taken by its two ends only, and endpoints never forward")
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper();
        UbEndpointParameters parameters;
        parameters.copyRate = UbTestRate(100'000'000'000);
        parameters.issueCost = PicoSeconds(77);
        const uint32_t a = helper.AddEndpoint(parameters);
        const uint32_t b = helper.AddEndpoint(parameters);
        const uint32_t c = helper.AddEndpoint(parameters);
        const uint32_t hub = helper.AddSwitch(PicoSeconds(FORWARD_PS), 65536);
        helper.Connect(a, b, 0, UbTestRate(200'000'000'000), PicoSeconds(500));
        helper.Connect(a, hub, 1, UbTestRate(RATE), PicoSeconds(DELAY_PS));
        helper.Connect(b, hub, 1, UbTestRate(RATE), PicoSeconds(DELAY_PS));
        helper.Connect(c, hub, 1, UbTestRate(RATE), PicoSeconds(DELAY_PS));
        const uint32_t d = helper.AddEndpoint(parameters); // reaches a and nobody else
        helper.Connect(d, a, 0, UbTestRate(200'000'000'000), PicoSeconds(500));
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(a, b, 1, 4096, 0);
        chunk.AddFlow(b, a, 1, 4096, 10'000'000);
        chunk.AddFlow(a, c, 1, 4096, 20'000'000);
        chunk.AddFlow(a, a, 1, 4096, 30'000'000);
        chunk.AddFlow(d, a, 1, 4096, 40'000'000);
        RunChunk(fabric, chunk);
        const int64_t direct =
            77 + 500 + UbTestWirePs(4096 + HEADER_BYTES, 200'000'000'000) + RECEIVE_PS;
        const int64_t expected[] = {direct,
                                    direct,
                                    77 + LonePs(1, 4096),
                                    77 + UbTestWirePs(4096, 100'000'000'000) + RECEIVE_PS,
                                    direct};
        const uint32_t hops[] = {1, 1, 2, 0, 1};
        for (uint32_t i = 0; i < 5; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].finishPs - chunk.flows[i].startPs,
                                  expected[i],
                                  "flow " << i);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].hops, hops[i], "links crossed by flow " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(d, a, 0), true, "directly");
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(d, b, 0), false, "a would have to forward");
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(d, c, 0), false, "a would have to forward");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief An endpoint with ports to several switches of a plane.
 */
class UbMultiHomedTestCase : public UbTestCase
{
  public:
    UbMultiHomedTestCase()
        : UbTestCase("an endpoint with several switches takes the shortest way to each endpoint")
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper();
        const auto rate = UbTestRate(RATE);
        const auto delay = PicoSeconds(DELAY_PS);
        const uint32_t a = helper.AddEndpoint();
        const uint32_t x = helper.AddEndpoint();
        const uint32_t y = helper.AddEndpoint();
        const uint32_t z = helper.AddEndpoint();
        const uint32_t s1 = helper.AddSwitch(PicoSeconds(FORWARD_PS), 65536);
        const uint32_t s2 = helper.AddSwitch(PicoSeconds(FORWARD_PS), 65536);
        helper.Connect(a, s1, 0, rate, delay);  // links 0, 1
        helper.Connect(a, s2, 0, rate, delay);  // 2, 3
        helper.Connect(x, s1, 0, rate, delay);  // 4, 5
        helper.Connect(y, s2, 0, rate, delay);  // 6, 7
        helper.Connect(z, s1, 0, rate, delay);  // 8, 9
        helper.Connect(z, s2, 0, rate, delay);  // 10, 11
        helper.Connect(s1, s2, 0, rate, delay); // 12, 13
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(a, x, 4, 4096, 0);
        chunk.AddFlow(a, y, 4, 4096, 10'000'000);
        chunk.AddFlow(a, z, 4, 4096, 20'000'000);
        chunk.AddFlow(x, y, 4, 4096, 30'000'000);
        RunChunk(fabric, chunk);
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        const uint64_t expected[] = {6, 0, 6, 0, 4, 4, 0, 8, 0, 2, 0, 2, 4, 0};
        for (uint32_t link = 0; link < 14; ++link)
        {
            NS_TEST_ASSERT_MSG_EQ(stats[link].packets, expected[link], "packets of link " << link);
        }
        const uint32_t hops[] = {2, 2, 2, 3};
        for (uint32_t i = 0; i < 4; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].hops, hops[i], "links crossed by flow " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Destination classes of several endpoints, as Python makes them.
 */
class UbClassTableTestCase : public UbTestCase
{
  public:
    UbClassTableTestCase()
        : UbTestCase("tables with classes of several endpoints route like tables without")
    {
    }

  private:
    void DoRun() override
    {
        // four endpoints 0..3 on switch 4 and 5, two each; cables 0-4 1-4 2-5 3-5 4-5
        UbFabricArrays arrays;
        const std::vector<uint8_t> isEndpoint{1, 1, 1, 1, 0, 0};
        const std::vector<int64_t> forward{0, 0, 0, 0, FORWARD_PS, FORWARD_PS};
        const std::vector<int64_t> buffer(6, 65536);
        const std::vector<uint32_t> engines{1, 1, 1, 1, 0, 0};
        const std::vector<int64_t> zero(6, 0);
        const std::vector<uint64_t> noLimit(6, 0);
        const std::vector<int64_t> receive(6, RECEIVE_PS);
        const std::vector<uint32_t> src{0, 4, 1, 4, 2, 5, 3, 5, 4, 5};
        const std::vector<uint32_t> dst{4, 0, 4, 1, 5, 2, 5, 3, 5, 4};
        const std::vector<uint32_t> plane(10, 0);
        const std::vector<uint64_t> rate(10, RATE);
        const std::vector<int64_t> delay(10, DELAY_PS);
        const uint32_t network = 0;
        const uint32_t nClasses = 2;
        const std::vector<int32_t> endpointClass{0, 0, 1, 1, -1, -1};
        const std::vector<int32_t> endpointSlot{0, 1, 0, 1, -1, -1};
        // groups 0..9 hold one link each, of the same number
        const std::vector<int64_t> endpointOut{-(0 + 2), -(2 + 2), -(4 + 2), -(6 + 2), -1, -1};
        const std::vector<int64_t> switchRow{-1, -1, -1, -1, 0, 2};
        const std::vector<int32_t> table{-(0 + 2), 8, 9, -(2 + 2)};
        const std::vector<int32_t> local{1, 3, 5, 7};
        std::vector<uint32_t> groupStart;
        std::vector<uint32_t> groupLink;
        for (uint32_t i = 0; i <= 10; ++i)
        {
            groupStart.push_back(i);
            groupLink.push_back(i);
        }
        const std::vector<uint32_t> directStart(7, 0);
        arrays.nNodes = 6;
        arrays.nodeIsEndpoint = isEndpoint.data();
        arrays.nodeForwardLatencyPs = forward.data();
        arrays.nodeBufferBytes = buffer.data();
        arrays.nodeIssueEngines = engines.data();
        arrays.nodeIssueCostPs = zero.data();
        arrays.nodeEngineBytesPerS = noLimit.data();
        arrays.nodeEgressBytesPerS = noLimit.data();
        arrays.nodeReceiveLatencyPs = receive.data();
        arrays.nodeCopyBytesPerS = noLimit.data();
        arrays.nLinks = 10;
        arrays.linkSrc = src.data();
        arrays.linkDst = dst.data();
        arrays.linkPlane = plane.data();
        arrays.linkBytesPerS = rate.data();
        arrays.linkDelayPs = delay.data();
        arrays.nPlanes = 1;
        arrays.planeNetwork = &network;
        arrays.planeNClasses = &nClasses;
        arrays.endpointClass = endpointClass.data();
        arrays.endpointSlot = endpointSlot.data();
        arrays.endpointOut = endpointOut.data();
        arrays.switchRow = switchRow.data();
        arrays.nTable = table.size();
        arrays.table = table.data();
        arrays.nLocal = local.size();
        arrays.local = local.data();
        arrays.nGroups = 10;
        arrays.groupStart = groupStart.data();
        arrays.groupLink = groupLink.data();
        arrays.directStart = directStart.data();
        arrays.directDst = groupLink.data();
        arrays.directLink = groupLink.data();
        const auto fabric = CreateObject<UbFabric>();
        fabric->SetAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
        fabric->Build(arrays);
        const SentLinks sent(fabric);
        UbTestChunk chunk;
        std::vector<std::vector<uint32_t>> ways;
        for (uint32_t from = 0; from < 4; ++from)
        {
            for (uint32_t to = 0; to < 4; ++to)
            {
                if (from == to)
                {
                    continue;
                }
                const int64_t start = 10'000'000 * static_cast<int64_t>(chunk.flows.size());
                chunk.AddFlow(from, to, 1, 512, start);
                ways.push_back({2 * from, 2 * to + 1});
                if (from / 2 != to / 2)
                {
                    ways.back().insert(ways.back().begin() + 1, from < 2 ? 8 : 9);
                }
            }
        }
        RunChunk(fabric, chunk);
        std::vector<uint32_t> all;
        for (uint32_t link = 0; link < 10; ++link)
        {
            all.push_back(link);
        }
        std::vector<std::vector<uint32_t>> taken(ways.size());
        for (const auto& [link, flow] : sent.On(all))
        {
            taken[flow].push_back(link);
        }
        for (uint32_t i = 0; i < ways.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ((taken[i] == ways[i]), true, "way of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].finishPs - chunk.flows[i].startPs,
                                  LonePs(static_cast<uint32_t>(ways[i].size()) - 1, 512),
                                  "time of flow " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Several networks.
 */
class UbNetworkTestCase : public UbTestCase
{
  public:
    UbNetworkTestCase()
        : UbTestCase("a flow stays on the planes of its network")
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper();
        const uint32_t a = helper.AddEndpoint();
        const uint32_t b = helper.AddEndpoint();
        const uint32_t c = helper.AddEndpoint(); // on network 1 only
        for (uint32_t plane = 0; plane < 3; ++plane)
        {
            const uint32_t hub = helper.AddSwitch(PicoSeconds(FORWARD_PS), 65536);
            helper.Connect(a, hub, plane, UbTestRate(RATE), PicoSeconds(DELAY_PS));
            helper.Connect(b, hub, plane, UbTestRate(RATE), PicoSeconds(DELAY_PS));
            if (plane == 1)
            {
                helper.Connect(c, hub, plane, UbTestRate(RATE), PicoSeconds(DELAY_PS));
            }
        }
        helper.SetNetwork(1, 1);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(a, b, 10, 4096, 0, 0, 0);
        chunk.AddFlow(a, b, 7, 4096, 0, 0, 1);
        RunChunk(fabric, chunk);
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        NS_TEST_ASSERT_MSG_EQ(stats[0].packets, 5, "plane 0");
        NS_TEST_ASSERT_MSG_EQ(stats[4].packets, 7, "plane 1");
        NS_TEST_ASSERT_MSG_EQ(stats[10].packets, 5, "plane 2");
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(a, c, 0), false, "not on network 0");
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(a, c, 1), true, "on network 1");
        NS_TEST_ASSERT_MSG_EQ(fabric->Reaches(a, b, 2), false, "there is no network 2");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Random traffic on small buffers.
 */
class UbConservationTestCase : public UbTestCase
{
  public:
    /**
     * @param [in] policy Name of both policies.
     * @param [in] nLanes Virtual lanes.
     */
    UbConservationTestCase(const std::string& policy, uint32_t nLanes)
        : UbTestCase("random traffic on small buffers loses nothing, " + policy + ", " +
                     std::to_string(nLanes) + " lanes"),
          m_policy(policy),
          m_nLanes(nLanes)
    {
    }

  private:
    void DoRun() override
    {
        auto helper = MakeHelper(m_policy, m_policy, 3);
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(512));
        helper.SetFabricAttribute("NumVirtualLanes", UintegerValue(m_nLanes));
        UbEndpointParameters parameters;
        parameters.issueEngines = 3;
        parameters.issueCost = PicoSeconds(1234);
        parameters.engineRate = UbTestRate(100'000'000'000);
        parameters.egressRate = UbTestRate(60'000'000'000);
        parameters.bufferBytes = 600;
        for (uint32_t i = 0; i < 12; ++i)
        {
            helper.AddEndpoint(parameters);
        }
        for (uint32_t plane = 0; plane < 2; ++plane)
        {
            uint32_t leaves[3];
            for (uint32_t leaf = 0; leaf < 3; ++leaf)
            {
                leaves[leaf] = helper.AddSwitch(PicoSeconds(FORWARD_PS), 1300);
                for (uint32_t i = 0; i < 4; ++i)
                {
                    // one endpoint of a leaf has a slower cable
                    const uint64_t rate = i == 0 ? RATE / 3 : RATE;
                    helper.Connect(4 * leaf + i,
                                   leaves[leaf],
                                   plane,
                                   UbTestRate(rate),
                                   PicoSeconds(DELAY_PS));
                }
            }
            for (uint32_t spine = 0; spine < 2; ++spine)
            {
                const uint32_t node = helper.AddSwitch(PicoSeconds(FORWARD_PS), 1300);
                for (const uint32_t leaf : leaves)
                {
                    helper.Connect(leaf, node, plane, UbTestRate(2 * RATE), PicoSeconds(DELAY_PS));
                }
            }
        }
        const auto fabric = helper.Build();
        std::mt19937 random(5);
        UbTestChunk chunk;
        uint64_t bytes = 0;
        uint64_t packets = 0;
        for (uint32_t i = 0; i < 300; ++i)
        {
            const uint32_t src = random() % 12;
            const uint32_t dst = random() % 3 == 0 ? 5 : random() % 12; // endpoint 5 is popular
            const uint32_t messages = 1 + random() % 4;
            const uint32_t size = 1 + random() % 3000;
            chunk.AddFlow(src,
                          dst,
                          messages,
                          size,
                          random() % 5'000'000,
                          static_cast<uint8_t>(random() % m_nLanes));
            bytes += uint64_t{messages} * size;
            packets += uint64_t{messages} * ((size + 511) / 512);
        }
        RunChunk(fabric, chunk);
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetBytesSent(), bytes, "bytes sent");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetBytesDelivered(), bytes, "bytes delivered");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), packets, "packets");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the chunk is complete");
        NS_TEST_ASSERT_MSG_EQ(fabric->TakeCompleteChunk(), -1, "once");
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        uint64_t hops = 0;
        int64_t stalled = 0;
        for (const UbLinkStats& link : stats)
        {
            hops += link.packets;
            stalled += link.noCreditPs;
            NS_TEST_ASSERT_MSG_GT_OR_EQ(link.noCreditPs, 0, "time without credit");
            NS_TEST_ASSERT_MSG_LT_OR_EQ(link.noCreditPs + link.busyPs,
                                        Simulator::Now().GetTimeStep(),
                                        "a link is busy or waits, not both");
        }
        NS_TEST_ASSERT_MSG_EQ(hops, fabric->GetPacketHops(), "packet-hops are those of the links");
        NS_TEST_ASSERT_MSG_GT(stalled, 0, "the case is hard enough to stall");
        for (uint32_t i = 0; i < chunk.flows.size(); ++i)
        {
            const UbFlowRecord& flow = chunk.flows[i];
            NS_TEST_ASSERT_MSG_EQ(flow.packetsLeft, 0, "packets of flow " << i);
            // nothing is faster than its last packet alone on the fastest link
            const uint32_t last = flow.messageBytes - (flow.messageBytes - 1) / 512 * 512;
            const int64_t bound = flow.src == flow.dst
                                      ? RECEIVE_PS
                                      : flow.hops * DELAY_PS + (flow.hops - 1) * FORWARD_PS +
                                            UbTestWirePs(last + HEADER_BYTES, RATE) + RECEIVE_PS;
            NS_TEST_ASSERT_MSG_GT_OR_EQ(flow.finishPs - flow.startPs, bound + 1234, "flow " << i);
            NS_TEST_ASSERT_MSG_LT_OR_EQ(flow.firstBytePs, flow.finishPs - RECEIVE_PS, "flow " << i);
            NS_TEST_ASSERT_MSG_GT_OR_EQ(flow.queueingPs, 0, "flow " << i);
        }
    }

    std::string m_policy; //!< name of both policies
    uint32_t m_nLanes;    //!< virtual lanes
};

/**
 * @ingroup ub-fabric-test
 * @brief Standing still in between.
 */
class UbStopAfterTestCase : public UbTestCase
{
  public:
    UbStopAfterTestCase()
        : UbTestCase("standing still after some packet-hops changes no time")
    {
    }

  private:
    /**
     * @param [in] slice Packet-hops between stops, 0 for none.
     * @return All times of all flows.
     */
    std::vector<int64_t> Times(uint64_t slice)
    {
        UbStartSimulation();
        auto helper = MakeHelper();
        LeafSpine tree;
        tree.Build(helper, 4, 3);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        for (uint32_t i = 0; i < 4; ++i)
        {
            for (uint32_t j = 0; j < 4; ++j)
            {
                chunk.AddFlow(tree.left[i], tree.right[j], 5, 4096, 1000 * i);
                chunk.AddFlow(tree.right[j], tree.left[i], 5, 4096, 3000 * j);
            }
        }
        fabric->AddChunk(chunk.Arrays());
        uint32_t nRuns = 0;
        do
        {
            fabric->StopAfter(slice);
            Simulator::Run();
            ++nRuns;
        } while (fabric->NextTime() != UB_NEVER);
        NS_TEST_EXPECT_MSG_EQ((nRuns > 10), (slice != 0), "number of slices");
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        std::vector<int64_t> times;
        for (const UbFlowRecord& flow : chunk.flows)
        {
            times.insert(times.end(),
                         {flow.startPs, flow.firstBytePs, flow.finishPs, flow.queueingPs});
        }
        fabric->Dispose();
        return times;
    }

    void DoRun() override
    {
        const auto whole = Times(0);
        NS_TEST_ASSERT_MSG_EQ((Times(1) == whole), true, "one packet-hop at a time");
        NS_TEST_ASSERT_MSG_EQ((Times(37) == whole), true, "37 packet-hops at a time");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Records that are used again.
 */
class UbReusedRecordTestCase : public UbTestCase
{
  public:
    UbReusedRecordTestCase()
        : UbTestCase("records of a complete chunk may be loaded again and give the same results")
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        chain.nSources = 2;
        auto helper = MakeHelper();
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 3, 4096);
        chunk.AddFlow(chain.sources[1], chain.destinations[0], 3, 4096);
        RunChunk(fabric, chunk);
        const std::vector<UbFlowRecord> first = chunk.flows;
        const int64_t again = 100'000'000;
        for (UbFlowRecord& flow : chunk.flows)
        {
            flow.startPs = again;
        }
        RunChunk(fabric, chunk);
        for (uint32_t i = 0; i < 2; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].firstBytePs - again,
                                  first[i].firstBytePs,
                                  "first byte of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].queueingPs,
                                  first[i].queueingPs,
                                  "queueing of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[i].hops, first[i].hops, "hops of flow " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs + chunk.flows[1].finishPs - 2 * again,
                              first[0].finishPs + first[1].finishPs,
                              "finish");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief What Leftover() says in the middle of a run.
 */
class UbLeftoverTestCase : public UbTestCase
{
  public:
    UbLeftoverTestCase()
        : UbTestCase("what is left in the middle of a run is said, and nothing at its end")
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        auto helper = MakeHelper();
        chain.Build(helper);
        const auto fabric = helper.Build();
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 3, 4096);
        fabric->AddChunk(chunk.Arrays());
        Simulator::Stop(PicoSeconds(100'000));
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(Simulator::Now().GetTimeStep(), 100'000, "stopped in time");
        const std::string left = fabric->Leftover();
        NS_TEST_ASSERT_MSG_NE(left.find("3 packets are still inside"), std::string::npos, left);
        NS_TEST_ASSERT_MSG_NE(left.find("1 flows and tasks are not finished"),
                              std::string::npos,
                              left);
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Two fabrics in one simulation.
 */
class UbTwoFabricsTestCase : public UbTestCase
{
  public:
    UbTwoFabricsTestCase()
        : UbTestCase("two fabrics in one simulation do not change each other's times, and time "
                     "never runs back")
    {
    }

  private:
    /// A packet left or arrived.
    void Traced(uint32_t /* link */, uint32_t /* flow */, uint32_t /* bytes */)
    {
        const int64_t now = Simulator::Now().GetTimeStep();
        NS_TEST_EXPECT_MSG_GT_OR_EQ(now, m_lastPs, "time runs back");
        m_lastPs = now;
        m_delivered.push_back(now);
    }

    /**
     * @param [in] which Bit 0: the first fabric, bit 1: the second.
     * @return Finish times of the flows of both, and times of traces of the second.
     */
    std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>> Times(
        uint32_t which)
    {
        UbStartSimulation();
        m_lastPs = 0;
        m_delivered.clear();
        std::vector<int64_t> finish[2];
        UbTestChunk chunk[2];
        Ptr<UbFabric> fabric[2];
        for (uint32_t i = 0; i < 2; ++i)
        {
            if ((which >> i & 1) == 0)
            {
                continue;
            }
            auto helper = MakeHelper();
            UbTestChain chain;
            chain.endpoint.receiveLatency =
                NanoSeconds(i == 0 ? 5000 : 1); // long windows, short ones
            chain.forwardPs += i;
            chain.Build(helper);
            fabric[i] = helper.Build();
            chunk[i].AddFlow(chain.sources[0], chain.destinations[0], 50, 4096, 3 * i);
            chunk[i].AddFlow(chain.destinations[0], chain.sources[0], 50, 4096, 7 * i);
            if (i == 1)
            {
                fabric[i]->TraceConnectWithoutContext(
                    "PacketDelivered",
                    MakeCallback(&UbTwoFabricsTestCase::Traced, this));
            }
            fabric[i]->AddChunk(chunk[i].Arrays());
        }
        Simulator::Run();
        for (uint32_t i = 0; i < 2; ++i)
        {
            for (const UbFlowRecord& flow : chunk[i].flows)
            {
                finish[i].push_back(flow.finishPs);
            }
            if (fabric[i])
            {
                NS_TEST_EXPECT_MSG_EQ(fabric[i]->Leftover(), "", "left over");
                fabric[i]->Dispose();
            }
        }
        return {finish[0], finish[1], m_delivered};
    }

    void DoRun() override
    {
        const auto both = Times(3);
        const auto first = Times(1);
        const auto second = Times(2);
        NS_TEST_ASSERT_MSG_EQ((std::get<0>(both) == std::get<0>(first)), true, "first fabric");
        NS_TEST_ASSERT_MSG_EQ((std::get<1>(both) == std::get<1>(second)), true, "second fabric");
        NS_TEST_ASSERT_MSG_EQ((std::get<2>(both) == std::get<2>(second)),
                              true,
                              "Now() in the trace callbacks of the second fabric");
    }

    int64_t m_lastPs{0};              //!< time of the last callback
    std::vector<int64_t> m_delivered; //!< times of deliveries of the second fabric
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the fabric: routes, policies, conservation.
 */
class UbFabricTestSuite : public TestSuite
{
  public:
    UbFabricTestSuite()
        : TestSuite("ub-fabric", Type::UNIT)
    {
        AddTestCase(new UbPathFlowHashTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbPathRoundRobinTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbPathRandomTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbPlanePolicyTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbDirectLinkTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbMultiHomedTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbClassTableTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbNetworkTestCase, TestCase::Duration::QUICK);
        for (const auto* policy : {"RoundRobin", "FlowHash", "Random"})
        {
            for (const uint32_t nLanes : {1U, 3U})
            {
                AddTestCase(new UbConservationTestCase(policy, nLanes), TestCase::Duration::QUICK);
            }
        }
        AddTestCase(new UbStopAfterTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbReusedRecordTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbLeftoverTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbTwoFabricsTestCase, TestCase::Duration::QUICK);
    }
};

static UbFabricTestSuite g_ubFabricTestSuite; ///< registers the suite
