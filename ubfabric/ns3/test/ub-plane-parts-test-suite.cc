// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "../model/ub-plane-parts.h"
#include "ub-test-case.h"

#include "ns3/uinteger.h"

#include <array>

using namespace ns3;

namespace
{

constexpr uint32_t LEAVES = 4;            //!< switches with endpoints
constexpr uint32_t RANKS_PER_LEAF = 3;    //!< endpoints of each
constexpr uint32_t SPINES = 2;            //!< switches that join them
constexpr int64_t LEAF_CABLE_PS = 7'000;  //!< from endpoint to leaf
constexpr int64_t SPINE_CABLE_PS = 9'000; //!< from leaf to spine

/// Arrays of leaves and spines, as far as a split looks at them.
struct LeafSpine
{
    std::vector<uint8_t> isEndpoint; //!< by node: endpoints, leaves, spines
    std::vector<uint32_t> src;       //!< by link
    std::vector<uint32_t> dst;       //!< by link
    std::vector<uint32_t> plane;     //!< by link
    std::vector<int64_t> delayPs;    //!< by link

    /// Lay cables of endpoints to their leaves, and of leaves to all spines.
    LeafSpine()
    {
        constexpr uint32_t nRanks = LEAVES * RANKS_PER_LEAF;
        isEndpoint.assign(nRanks, 1);
        isEndpoint.resize(nRanks + LEAVES + SPINES, 0);
        for (uint32_t rank = 0; rank < nRanks; ++rank)
        {
            Connect(rank, Leaf(rank / RANKS_PER_LEAF), LEAF_CABLE_PS);
        }
        for (uint32_t leaf = 0; leaf < LEAVES; ++leaf)
        {
            for (uint32_t spine = 0; spine < SPINES; ++spine)
            {
                Connect(Leaf(leaf), Spine(spine), SPINE_CABLE_PS);
            }
        }
    }

    /**
     * @param [in] leaf A leaf.
     * @return Its node.
     */
    static uint32_t Leaf(uint32_t leaf)
    {
        return LEAVES * RANKS_PER_LEAF + leaf;
    }

    /**
     * @param [in] spine A spine.
     * @return Its node.
     */
    static uint32_t Spine(uint32_t spine)
    {
        return LEAVES * RANKS_PER_LEAF + LEAVES + spine;
    }

    /**
     * Lay a cable.
     * @param [in] a A node.
     * @param [in] b Another.
     * @param [in] ps Its delay.
     */
    void Connect(uint32_t a, uint32_t b, int64_t ps)
    {
        for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)})
        {
            src.push_back(from);
            dst.push_back(to);
            plane.push_back(0);
            delayPs.push_back(ps);
        }
    }

    /**
     * @param [in] nParts Parts wanted.
     * @param [in] leastHops Packet-hops of a step of a busy part.
     * @return The split.
     */
    UbPlaneSplit Split(uint32_t nParts, uint64_t leastHops = 0) const
    {
        UbFabricArrays arrays;
        arrays.nNodes = static_cast<uint32_t>(isEndpoint.size());
        arrays.nodeIsEndpoint = isEndpoint.data();
        arrays.nLinks = static_cast<uint32_t>(src.size());
        arrays.linkSrc = src.data();
        arrays.linkDst = dst.data();
        arrays.linkPlane = plane.data();
        arrays.linkDelayPs = delayPs.data();
        const std::vector<uint64_t> rates(src.size(), 28'000'000'000);
        arrays.linkBytesPerS = rates.data();
        arrays.nPlanes = 1;
        return UbSplitPlane(arrays, 0, nParts, leastHops);
    }
};

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief Where a plane is cut.
 */
class UbSplitPlaneTestCase : public TestCase
{
  public:
    UbSplitPlaneTestCase()
        : TestCase("long cables between switches are cut, so that parts are about equally large")
    {
    }

  private:
    void DoRun() override
    {
        const LeafSpine fabric;
        const UbPlaneSplit split = fabric.Split(2);
        NS_TEST_ASSERT_MSG_EQ(split.nParts, 2, "parts");
        NS_TEST_ASSERT_MSG_EQ(split.lookaheadPs, SPINE_CABLE_PS, "shortest cable that is cut");
        for (uint32_t leaf = 0; leaf < LEAVES; ++leaf)
        {
            NS_TEST_ASSERT_MSG_EQ((*split.ofNode)[LeafSpine::Leaf(leaf)],
                                  2 * leaf / LEAVES,
                                  "neighbours stay together: leaf " << leaf);
        }
        for (uint32_t rank = 0; rank < LEAVES * RANKS_PER_LEAF; ++rank)
        {
            NS_TEST_ASSERT_MSG_EQ((*split.ofNode)[rank],
                                  (*split.ofNode)[LeafSpine::Leaf(rank / RANKS_PER_LEAF)],
                                  "an endpoint stays with its leaf: " << rank);
        }
        NS_TEST_ASSERT_MSG_NE((*split.ofNode)[LeafSpine::Spine(0)],
                              (*split.ofNode)[LeafSpine::Spine(1)],
                              "each part has a spine");
        NS_TEST_ASSERT_MSG_EQ(fabric.Split(5).nParts, 4, "five could not be equally large");

        // 40 links, each with a packet in 146 ns: 2.5 in the 9 ns of a cable
        NS_TEST_ASSERT_MSG_EQ(fabric.Split(4, 1).nParts, 2, "parts have enough to do");
        NS_TEST_ASSERT_MSG_EQ(fabric.Split(4, 2).nParts, 1, "or there are none");

        LeafSpine far = fabric;
        constexpr int64_t farPs = 10 * SPINE_CABLE_PS;
        for (size_t link = 0; link < far.src.size(); ++link)
        {
            // leaves 0 and 1 with spine 0 here, the others there
            const bool isHere =
                far.src[link] == LeafSpine::Spine(0) || far.dst[link] == LeafSpine::Spine(0);
            const bool isLow = std::min(far.src[link], far.dst[link]) <= LeafSpine::Leaf(1);
            far.delayPs[link] =
                far.delayPs[link] == SPINE_CABLE_PS && isHere != isLow ? farPs : far.delayPs[link];
        }
        NS_TEST_ASSERT_MSG_EQ(far.Split(2).lookaheadPs, farPs, "the longest cables are cut");
        NS_TEST_ASSERT_MSG_EQ(far.Split(4).lookaheadPs, SPINE_CABLE_PS, "or shorter ones too");

        LeafSpine near = fabric;
        std::fill(near.delayPs.begin(), near.delayPs.end(), 4'999);
        NS_TEST_ASSERT_MSG_EQ(near.Split(2).nParts, 1, "short cables are left alone");

        LeafSpine tied = fabric;
        for (uint32_t leaf = 1; leaf < LEAVES; ++leaf)
        {
            tied.Connect(0, LeafSpine::Leaf(leaf), LEAF_CABLE_PS);
        }
        NS_TEST_ASSERT_MSG_EQ(tied.Split(2).nParts, 1, "an endpoint ties its leaves together");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A plane in parts beside the whole one.
 */
class UbPlanePartsTestCase : public UbTestCase
{
  public:
    UbPlanePartsTestCase()
        : UbTestCase("a plane in parts moves each packet as the whole one does")
    {
    }

  private:
    /// What is run.
    enum Scenario
    {
        PLAIN,   //!< ideal credits, unlimited crossbars
        USUAL,   //!< credits on packets, iSLIP
        CONTROL, //!< credits in control blocks
        FAULTY,  //!< a link changes
    };

    /**
     * Let all ranks write to all, over buffers of two packets.
     * @param [in] scenario What is run.
     * @param [in] nThreads Number of threads.
     * @param [out] chunk Flows with their times.
     * @param [out] links What the links did.
     * @return Processes of the plane.
     */
    uint32_t RunAll(Scenario scenario,
                    uint32_t nThreads,
                    UbTestChunk& chunk,
                    std::vector<UbLinkStats>& links)
    {
        DoTeardown();
        DoSetup();
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(512));
        helper.SetFabricAttribute("UbTransport", UbTestPosted(28));
        helper.SetFabricAttribute("CellBytes", UintegerValue(20));
        helper.SetFabricAttribute("CreditGrainCells", UintegerValue(4));
        helper.SetFabricAttribute("CreditTimeout", TimeValue(NanoSeconds(40)));
        helper.SetFabricAttribute("Allocator",
                                  StringValue(scenario == PLAIN ? "Unlimited" : "Islip"));
        helper.SetFabricAttribute("CreditReturn",
                                  StringValue(scenario == PLAIN     ? "Ideal"
                                              : scenario == CONTROL ? "Control"
                                                                    : "Piggyback"));
        helper.SetFabricAttribute("Threads", UintegerValue(nThreads));
        helper.SetFabricAttribute("ThreadHops", UintegerValue(1));
        const LeafSpine fabric;
        UbEndpointParameters endpoint;
        endpoint.issueCost = NanoSeconds(3);
        endpoint.receiveLatency = NanoSeconds(90);
        for (const uint8_t isEndpoint : fabric.isEndpoint)
        {
            if (isEndpoint != 0)
            {
                helper.AddEndpoint(endpoint);
            }
            else
            {
                helper.AddSwitch(NanoSeconds(5), 1160);
            }
        }
        for (size_t link = 0; link < fabric.src.size(); link += 2)
        {
            helper.Connect(fabric.src[link],
                           fabric.dst[link],
                           0,
                           UbTestRate(fabric.dst[link] == LeafSpine::Spine(1) ? 11'000'000'000
                                                                              : 20'000'000'000),
                           PicoSeconds(fabric.delayPs[link]));
        }
        constexpr uint32_t nRanks = LEAVES * RANKS_PER_LEAF;
        for (uint32_t src = 0; src < nRanks; ++src)
        {
            for (uint32_t dst = 0; dst < nRanks; ++dst)
            {
                chunk.AddFlow(src, dst, 2, 700 + 90 * (src % 4), 10'000 * (dst % 3));
            }
        }
        const auto made = helper.Build();
        if (scenario == FAULTY)
        {
            made->ScheduleLink(400'000, 2 * nRanks, 5'000'000'000, 0);
        }
        made->AddChunk(chunk.Arrays());
        Simulator::Run();
        NS_TEST_EXPECT_MSG_EQ(made->Leftover(), "", "left over");
        made->ReadLinkStats(links);
        return made->GetNProcesses();
    }

    void DoRun() override
    {
        for (const Scenario scenario : {PLAIN, USUAL, CONTROL, FAULTY})
        {
            UbTestChunk whole;
            std::vector<UbLinkStats> wholeLinks;
            const uint32_t nWhole = RunAll(scenario, 1, whole, wholeLinks);
            NS_TEST_ASSERT_MSG_EQ(nWhole, 1, "one thread");
            UbTestChunk split;
            std::vector<UbLinkStats> splitLinks;
            const uint32_t nSplit = RunAll(scenario, 2, split, splitLinks);
            NS_TEST_ASSERT_MSG_EQ(nSplit,
                                  (scenario == FAULTY ? 1 : 4),
                                  "two threads share a plane that nothing changes");
            for (size_t flow = 0; flow < whole.flows.size(); ++flow)
            {
                NS_TEST_ASSERT_MSG_EQ(split.flows[flow].finishPs,
                                      whole.flows[flow].finishPs,
                                      "finish of flow " << flow << " in scenario " << scenario);
                NS_TEST_ASSERT_MSG_EQ(split.flows[flow].queueingPs,
                                      whole.flows[flow].queueingPs,
                                      "waiting of flow " << flow << " in scenario " << scenario);
            }
            uint64_t noCreditPs = 0;
            for (size_t link = 0; link < wholeLinks.size(); ++link)
            {
                NS_TEST_ASSERT_MSG_EQ(splitLinks[link].packets,
                                      wholeLinks[link].packets,
                                      "packets of link " << link);
                NS_TEST_ASSERT_MSG_EQ(splitLinks[link].maxQueueBytes,
                                      wholeLinks[link].maxQueueBytes,
                                      "longest queue of link " << link);
                NS_TEST_ASSERT_MSG_EQ(splitLinks[link].noCreditPs,
                                      wholeLinks[link].noCreditPs,
                                      "time without credit of link " << link);
                noCreditPs += wholeLinks[link].noCreditPs;
            }
            NS_TEST_ASSERT_MSG_GT(noCreditPs, 0, "buffers are small enough to matter");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Tests of planes in parts.
 */
class UbPlanePartsTestSuite : public TestSuite
{
  public:
    UbPlanePartsTestSuite()
        : TestSuite("ub-plane-parts", Type::UNIT)
    {
        AddTestCase(new UbSplitPlaneTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbPlanePartsTestCase, TestCase::Duration::QUICK);
    }
};

static UbPlanePartsTestSuite g_ubPlanePartsTestSuite; //!< the suite
