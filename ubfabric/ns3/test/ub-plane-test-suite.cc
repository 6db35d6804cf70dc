// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/callback.h"
#include "ns3/uinteger.h"

#include <map>

using namespace ns3;

namespace
{

/// Bytes that the fabric adds to a packet in these cases.
constexpr uint32_t HEADER_BYTES = 64;

/**
 * Build a chain with a payload size and HEADER_BYTES of header.
 * @param [in,out] chain The chain.
 * @param [in] payloadBytes Attribute PayloadBytes.
 * @param [in] nLanes Attribute NumVirtualLanes.
 * @return The fabric.
 */
Ptr<UbFabric>
BuildChain(UbTestChain& chain, uint32_t payloadBytes = 4096, uint32_t nLanes = 1)
{
    UbFabricHelper helper;
    helper.SetFabricAttribute("PayloadBytes", UintegerValue(payloadBytes));
    helper.SetFabricAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
    helper.SetFabricAttribute("NumVirtualLanes", UintegerValue(nLanes));
    chain.Build(helper);
    return helper.Build();
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

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief A message of one packet that meets nobody.
 */
class UbLoneMessageTestCase : public UbTestCase
{
  public:
    /**
     * @param [in] nSwitches Switches on the way.
     * @param [in] messageBytes Bytes of the message, at most 4096.
     * @param [in] rateBytesPerS Rate of the links.
     */
    UbLoneMessageTestCase(uint32_t nSwitches, uint32_t messageBytes, uint64_t rateBytesPerS)
        : UbTestCase("a lone message of " + std::to_string(messageBytes) + " B through " +
                     std::to_string(nSwitches) + " switches at " + std::to_string(rateBytesPerS) +
                     " bytes a second takes the closed form to the picosecond"),
          m_nSwitches(nSwitches),
          m_messageBytes(messageBytes),
          m_rateBytesPerS(rateBytesPerS)
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t start = 1'000'003;
        constexpr int64_t issue = 350'001;
        constexpr int64_t receive = 123'457;
        constexpr uint64_t engineRate = 50'000'000'007;
        UbTestChain chain;
        chain.nSwitches = m_nSwitches;
        chain.rateBytesPerS = m_rateBytesPerS;
        chain.delayPs = 10'007;
        chain.forwardPs = 201'003;
        chain.endpoint.issueCost = PicoSeconds(issue);
        chain.endpoint.engineRate = UbTestRate(engineRate);
        chain.endpoint.receiveLatency = PicoSeconds(receive);
        const auto fabric = BuildChain(chain);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, m_messageBytes, start);
        RunChunk(fabric, chunk);

        const int64_t serialise = UbTestWirePs(m_messageBytes + HEADER_BYTES, m_rateBytesPerS);
        const int64_t head =
            start + issue + UbTestWirePs(m_messageBytes, engineRate) + chain.PathPs();
        const UbFlowRecord& flow = chunk.flows[0];
        NS_TEST_ASSERT_MSG_EQ(flow.startPs, start, "handed over");
        NS_TEST_ASSERT_MSG_EQ(flow.firstBytePs, head, "first byte");
        NS_TEST_ASSERT_MSG_EQ(flow.finishPs, head + serialise + receive, "finish");
        NS_TEST_ASSERT_MSG_EQ(flow.queueingPs, 0, "it met nobody");
        NS_TEST_ASSERT_MSG_EQ(flow.hops, m_nSwitches + 1, "links crossed");
        NS_TEST_ASSERT_MSG_EQ(Simulator::Now().GetTimeStep(), flow.finishPs, "end of the run");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketHops(), m_nSwitches + 1, "packet-hops");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    uint32_t m_nSwitches;     //!< switches on the way
    uint32_t m_messageBytes;  //!< bytes of the message
    uint64_t m_rateBytesPerS; //!< rate of the links
};

/**
 * @ingroup ub-fabric-test
 * @brief A message of several packets that meets nobody.
 */
class UbMultiPacketMessageTestCase : public UbTestCase
{
  public:
    /// Which part of the source is the slowest.
    enum Limit
    {
        LINK,
        ENGINE,
        EGRESS,
    };

    /// @param [in] limit What is slowest.
    explicit UbMultiPacketMessageTestCase(Limit limit)
        : UbTestCase(
              std::string("a message of several packets takes the closed form, limited by ") +
              (limit == LINK     ? "the link"
               : limit == ENGINE ? "the engine"
                                 : "the egress of the endpoint")),
          m_limit(limit)
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t linkRate = 28'000'000'000;
        constexpr uint64_t slowRate =
            3'000'000'001; // even the short packet takes longer than the link
        constexpr uint32_t payload = 512;
        constexpr uint32_t rest = 100;
        constexpr uint32_t nFull = 7;
        constexpr int64_t issue = 5'000;
        UbTestChain chain;
        chain.nSwitches = 3;
        chain.rateBytesPerS = linkRate;
        chain.endpoint.issueCost = PicoSeconds(issue);
        chain.endpoint.receiveLatency = PicoSeconds(700);
        if (m_limit == ENGINE)
        {
            chain.endpoint.engineRate = UbTestRate(slowRate);
        }
        if (m_limit == EGRESS)
        {
            chain.endpoint.egressRate = UbTestRate(slowRate);
        }
        const auto fabric = BuildChain(chain, payload);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, nFull * payload + rest, 0);
        RunChunk(fabric, chunk);

        // when the last packet's first byte leaves the source
        int64_t lastOut = issue;
        int64_t queueing = 0;
        uint32_t waiting = 0;
        const int64_t full = UbTestWirePs(payload + HEADER_BYTES, linkRate);
        if (m_limit == LINK)
        {
            lastOut += nFull * full;
            // packet i waits for i others at the source, and nowhere else
            queueing = nFull * (nFull + 1) / 2 * full;
            waiting = (nFull - 1) * (payload + HEADER_BYTES) + rest + HEADER_BYTES;
        }
        else if (m_limit == ENGINE)
        {
            lastOut += nFull * UbTestWirePs(payload, slowRate) + UbTestWirePs(rest, slowRate);
        }
        else
        {
            lastOut += nFull * UbTestWirePs(payload + HEADER_BYTES, slowRate);
        }
        const UbFlowRecord& flow = chunk.flows[0];
        NS_TEST_ASSERT_MSG_EQ(flow.finishPs,
                              lastOut + chain.PathPs() +
                                  UbTestWirePs(rest + HEADER_BYTES, linkRate) + 700,
                              "finish");
        NS_TEST_ASSERT_MSG_EQ(flow.queueingPs, queueing, "queueing");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetPacketsSent(), nFull + 1, "packets");
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        // if the link is slowest, all but the first wait at once
        NS_TEST_ASSERT_MSG_EQ(stats[0].maxQueueBytes,
                              waiting,
                              "most bytes that waited at the source");
        NS_TEST_ASSERT_MSG_EQ(fabric->GetBytesDelivered(), nFull * payload + rest, "bytes");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    Limit m_limit; //!< what is slowest
};

/**
 * @ingroup ub-fabric-test
 * @brief Engines in parallel and their issue cost.
 */
class UbIssueTestCase : public UbTestCase
{
  public:
    UbIssueTestCase()
        : UbTestCase("an endpoint issues as many messages at a time as it has engines")
    {
    }

  private:
    void DoRun() override
    {
        constexpr int64_t issue = 1'000'000; // long against everything else
        constexpr uint64_t engineRate = 10'000'000'000;
        for (const uint32_t nEngines : {1U, 2U, 3U, 64U})
        {
            UbStartSimulation();
            UbTestChain chain;
            chain.endpoint.issueEngines = nEngines;
            chain.endpoint.issueCost = PicoSeconds(issue);
            chain.endpoint.engineRate = UbTestRate(engineRate);
            chain.endpoint.receiveLatency = PicoSeconds(1);
            const auto fabric = BuildChain(chain);
            constexpr uint32_t nMessages = 7;
            UbTestChunk chunk;
            chunk.AddFlow(chain.sources[0], chain.destinations[0], nMessages, 100);
            RunChunk(fabric, chunk);
            // engines work in step; those of the last round share the port
            const uint32_t rounds = (nMessages + nEngines - 1) / nEngines;
            const uint32_t last = nMessages - (rounds - 1) * nEngines;
            const int64_t serialise = UbTestWirePs(100 + HEADER_BYTES, chain.rateBytesPerS);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                                  rounds * (issue + UbTestWirePs(100, engineRate)) +
                                      chain.PathPs() + last * serialise + 1,
                                  nEngines << " engines");
            fabric->Dispose();
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Cut-through between links of different rates.
 */
class UbCutThroughTestCase : public UbTestCase
{
  public:
    /// @param [in] outRate Rate of the second link; the first has 10 GB/s.
    explicit UbCutThroughTestCase(uint64_t outRate)
        : UbTestCase(outRate > 10'000'000'000
                         ? "cut-through onto a faster link waits until the tail will be there"
                         : "cut-through onto a slower link sends on at once"),
          m_outRate(outRate)
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        chain.rateBytesPerS = 10'000'000'000;
        chain.lastRateBytesPerS = m_outRate;
        const auto fabric = BuildChain(chain);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 1, 4096, 0);
        constexpr int64_t second = 50'000'000; // long after the first
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 2, 4096, second);
        RunChunk(fabric, chunk);

        const int64_t in = UbTestWirePs(4096 + HEADER_BYTES, chain.rateBytesPerS);
        const int64_t out = UbTestWirePs(4096 + HEADER_BYTES, m_outRate);
        const int64_t receive = 1000;
        const int64_t slowest = std::max(in, out);
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              chain.PathPs() + slowest + receive,
                              "one packet takes the time of the slower link");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].firstBytePs,
                              chain.PathPs() + slowest - out,
                              "its first byte");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].queueingPs, 0, "that is not queueing");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].finishPs - second,
                              chain.PathPs() + 2 * slowest + receive,
                              "two packets follow each other on the slower link");
        // the second waits for the first: `in` at the source, and the rest at the slower link
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].queueingPs, slowest, "queueing");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    uint64_t m_outRate; //!< rate of the second link
};

/**
 * @ingroup ub-fabric-test
 * @brief A fast port between slow and fast inputs.
 */
class UbReadyFirstTestCase : public UbTestCase
{
  public:
    UbReadyFirstTestCase()
        : UbTestCase("a port does not stay idle for a packet whose tail still comes in on a "
                     "slower link")
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint64_t fast = 40'000'000'000;
        constexpr uint64_t slow = 10'000'000'000;
        for (const bool isSlowFirst : {false, true})
        {
            UbStartSimulation();
            UbFabricHelper helper;
            helper.SetFabricAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
            const uint32_t hub = helper.AddSwitch(PicoSeconds(1000), 65536);
            const uint32_t a = helper.AddEndpoint();
            const uint32_t b = helper.AddEndpoint();
            const uint32_t c = helper.AddEndpoint();
            const auto delay = PicoSeconds(100);
            helper.Connect(a, hub, 0, UbTestRate(isSlowFirst ? slow : fast), delay);
            helper.Connect(b, hub, 0, UbTestRate(isSlowFirst ? fast : slow), delay);
            helper.Connect(c, hub, 0, UbTestRate(fast), delay);
            const auto fabric = helper.Build();
            UbTestChunk chunk;
            chunk.AddFlow(isSlowFirst ? a : b, c, 1, 4096, 0);
            chunk.AddFlow(isSlowFirst ? b : a, c, 1, 4096, 7);
            RunChunk(fabric, chunk);
            const int64_t out = UbTestWirePs(4096 + HEADER_BYTES, fast);
            const int64_t in = UbTestWirePs(4096 + HEADER_BYTES, slow);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].finishPs,
                                  7 + 100 + 1000 + 100 + out + 1000,
                                  "the one from the fast link goes at once");
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                                  100 + 1000 + 100 + in + 1000,
                                  "the other when its tail is there");
            NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
            fabric->Dispose();
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Two flows into one port.
 */
class UbFairShareTestCase : public UbTestCase
{
  public:
    UbFairShareTestCase()
        : UbTestCase("two flows into one port share it packet by packet")
    {
    }

  private:
    /**
     * A packet was delivered.
     * @param [in] flow Its flow.
     */
    void Delivered(uint32_t /* link */, uint32_t flow, uint32_t /* bytes */)
    {
        m_order.push_back(flow);
    }

    void DoRun() override
    {
        UbTestChain chain;
        chain.nSources = 2;
        const auto fabric = BuildChain(chain);
        fabric->TraceConnectWithoutContext("PacketDelivered",
                                           MakeCallback(&UbFairShareTestCase::Delivered, this));
        UbTestChunk chunk;
        constexpr uint32_t nShort = 10;
        constexpr uint32_t nLong = 50;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], nShort, 4096);
        chunk.AddFlow(chain.sources[1], chain.destinations[0], nLong, 4096);
        RunChunk(fabric, chunk);

        const int64_t serialise = UbTestWirePs(4096 + HEADER_BYTES, chain.rateBytesPerS);
        const int64_t base = chain.PathPs() + 1000;
        NS_TEST_ASSERT_MSG_EQ(m_order.size(), nShort + nLong, "all delivered");
        for (uint32_t i = 0; i < m_order.size(); ++i)
        {
            const uint32_t expected = i < 2 * nShort ? i % 2 : 1;
            NS_TEST_ASSERT_MSG_EQ(m_order[i], expected, "turn " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              base + (2 * nShort - 1) * serialise,
                              "the short flow gets every second turn");
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[1].finishPs,
                              base + (nShort + nLong) * serialise,
                              "the port is never idle");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    std::vector<uint32_t> m_order; //!< flows of delivered packets
};

/**
 * @ingroup ub-fabric-test
 * @brief Many to one.
 */
class UbIncastTestCase : public UbTestCase
{
  public:
    /// @param [in] bufferBytes Buffer of the switch's ports.
    explicit UbIncastTestCase(uint32_t bufferBytes)
        : UbTestCase("the makespan of an incast is bytes over rate and the pipeline, buffers of " +
                     std::to_string(bufferBytes) + " B"),
          m_bufferBytes(bufferBytes)
    {
    }

  private:
    void DoRun() override
    {
        UbTestChain chain;
        chain.nSources = 16;
        chain.bufferBytes = m_bufferBytes;
        const auto fabric = BuildChain(chain);
        UbTestChunk chunk;
        constexpr uint32_t nMessages = 20;
        for (const uint32_t source : chain.sources)
        {
            chunk.AddFlow(source, chain.destinations[0], nMessages, 4096);
        }
        RunChunk(fabric, chunk);

        int64_t first = UB_NEVER;
        int64_t last = 0;
        for (const UbFlowRecord& flow : chunk.flows)
        {
            first = std::min(first, flow.finishPs);
            last = std::max(last, flow.finishPs);
        }
        const int64_t nPackets = int64_t{chain.nSources} * nMessages;
        const int64_t serialise = UbTestWirePs(4096 + HEADER_BYTES, chain.rateBytesPerS);
        NS_TEST_ASSERT_MSG_EQ(last, chain.PathPs() + nPackets * serialise + 1000, "makespan");
        NS_TEST_ASSERT_MSG_EQ(first,
                              last - (chain.nSources - 1) * serialise,
                              "equal flows end in the last round");
        // each packet is rounded to a picosecond, so the sum may differ by half of one a packet
        const int64_t ideal = UbTestWirePs(nPackets * (4096 + HEADER_BYTES), chain.rateBytesPerS);
        NS_TEST_ASSERT_MSG_EQ_TOL(last - chain.PathPs() - 1000,
                                  ideal,
                                  nPackets / 2 + 1,
                                  "bytes over rate");
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        const UbLinkStats& port = stats[chain.LastLink()];
        const auto packets = static_cast<uint64_t>(nPackets);
        NS_TEST_ASSERT_MSG_EQ(port.packets, packets, "packets on the last link");
        NS_TEST_ASSERT_MSG_EQ(port.bytes, packets * (4096 + HEADER_BYTES), "bytes on it");
        NS_TEST_ASSERT_MSG_EQ(port.busyPs, ideal, "time busy");
        NS_TEST_ASSERT_MSG_EQ(port.noCreditPs, 0, "it never lacks credit");
        NS_TEST_ASSERT_MSG_LT_OR_EQ(port.maxQueueBytes,
                                    uint64_t{chain.nSources} * m_bufferBytes,
                                    "no more waits than there are buffers");
        NS_TEST_ASSERT_MSG_EQ((stats[0].noCreditPs > 0),
                              (m_bufferBytes < nMessages * (4096 + HEADER_BYTES)),
                              "sources stall if and only if buffers fill");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    uint32_t m_bufferBytes; //!< buffer of the switch's ports
};

/**
 * @ingroup ub-fabric-test
 * @brief The round trip of a credit, to the picosecond.
 */
class UbCreditRoundTripTestCase : public UbTestCase
{
  public:
    UbCreditRoundTripTestCase()
        : UbTestCase("with a buffer of one packet a link sends one packet a credit's round trip")
    {
    }

  private:
    void DoRun() override
    {
        constexpr uint32_t wire = 4096 + HEADER_BYTES;
        constexpr uint32_t n = 25;
        // a direct cable: the endpoint returns the credit with the tail
        {
            UbFabricHelper helper;
            helper.SetFabricAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
            UbEndpointParameters parameters;
            parameters.bufferBytes = wire;
            const uint32_t a = helper.AddEndpoint(parameters);
            const uint32_t b = helper.AddEndpoint(parameters);
            helper.Connect(a, b, 0, UbTestRate(28'000'000'000), PicoSeconds(30'000));
            const auto fabric = helper.Build();
            UbTestChunk chunk;
            chunk.AddFlow(a, b, n, 4096);
            RunChunk(fabric, chunk);
            const int64_t serialise = UbTestWirePs(wire, 28'000'000'000);
            NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                                  (n - 1) * (serialise + 60'000) + serialise + 30'000 + 1000,
                                  "direct link");
            std::vector<UbLinkStats> stats;
            fabric->ReadLinkStats(stats);
            NS_TEST_ASSERT_MSG_EQ(stats[0].noCreditPs, (n - 1) * 60'000, "time without credit");
            NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
            fabric->Dispose();
        }
        // a switch: it returns the credit when the tail has left
        UbStartSimulation();
        UbTestChain chain;
        chain.bufferBytes = wire;
        const auto fabric = BuildChain(chain);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], n, 4096);
        RunChunk(fabric, chunk);
        const int64_t serialise = UbTestWirePs(wire, chain.rateBytesPerS);
        const int64_t round = serialise + 2 * chain.delayPs + chain.forwardPs;
        NS_TEST_ASSERT_MSG_EQ(chunk.flows[0].finishPs,
                              (n - 1) * round + chain.PathPs() + serialise + 1000,
                              "through a switch");
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        NS_TEST_ASSERT_MSG_EQ(stats[0].noCreditPs, (n - 1) * (round - serialise), "no credit");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Small buffers before a slow link.
 */
class UbBackPressureTestCase : public UbTestCase
{
  public:
    UbBackPressureTestCase()
        : UbTestCase("back-pressure fills buffer after buffer, spreads upstream and drains "
                     "without loss")
    {
    }

  private:
    /**
     * A link stalls.
     * @param [in] link The link.
     */
    void Stalled(uint32_t link)
    {
        m_firstStall.try_emplace(link, Simulator::Now().GetTimeStep());
    }

    /**
     * Compute one victim's completion.
     * @param [in] isCrowded Whether flows to the slow endpoint are there too.
     * @return Its completion time.
     */
    int64_t Victim(bool isCrowded)
    {
        constexpr uint32_t wire = 4096 + HEADER_BYTES;
        UbStartSimulation();
        UbTestChain chain;
        chain.nSwitches = 3;
        chain.nSources = 2;
        chain.nDestinations = 2;
        chain.lastRateBytesPerS = chain.rateBytesPerS / 10;
        chain.bufferBytes = 3 * wire;
        const auto fabric = BuildChain(chain);
        fabric->TraceConnectWithoutContext("CreditStall",
                                           MakeCallback(&UbBackPressureTestCase::Stalled, this));
        UbTestChunk chunk;
        // the victim goes to the fast endpoint, when all buffers are full
        chunk.AddFlow(chain.sources[1], chain.destinations[1], 5, 4096, 30'000'000);
        constexpr uint32_t n = 200;
        if (isCrowded)
        {
            chunk.AddFlow(chain.sources[0], chain.destinations[0], n, 4096);
        }
        RunChunk(fabric, chunk);

        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        NS_TEST_EXPECT_MSG_EQ(fabric->GetBytesSent(), fabric->GetBytesDelivered(), "bytes");
        std::vector<UbLinkStats> stats;
        fabric->ReadLinkStats(stats);
        if (isCrowded)
        {
            // links 0 and 2 leave the sources, 4 and 6 the first two switches, 8 the slow end
            const int64_t slow = UbTestWirePs(wire, chain.lastRateBytesPerS);
            NS_TEST_EXPECT_MSG_EQ(chunk.flows[1].finishPs,
                                  chain.PathPs() + n * slow + 1000,
                                  "the slow link is always busy");
            for (const uint32_t link : {0U, 4U, 6U})
            {
                NS_TEST_EXPECT_MSG_GT(stats[link].noCreditPs, 0, "link " << link << " stalls");
            }
            NS_TEST_EXPECT_MSG_EQ(stats[8].noCreditPs, 0, "the slow link does not");
            NS_TEST_EXPECT_MSG_EQ((m_firstStall.size() >= 3), true, "stalls are traced");
            NS_TEST_EXPECT_MSG_LT(m_firstStall[6], m_firstStall[4], "the nearest link first");
            NS_TEST_EXPECT_MSG_LT(m_firstStall[4], m_firstStall[0], "then upstream");
            for (const uint32_t link : {4U, 6U, 8U})
            {
                NS_TEST_EXPECT_MSG_LT_OR_EQ(stats[link].maxQueueBytes,
                                            2 * chain.bufferBytes,
                                            "queue of link " << link);
            }
        }
        else
        {
            for (const UbLinkStats& link : stats)
            {
                NS_TEST_EXPECT_MSG_EQ(link.noCreditPs, 0, "no stall without a crowd");
            }
            NS_TEST_EXPECT_MSG_EQ(m_firstStall.size(), 0, "nor a trace of one");
        }
        const int64_t fct = chunk.flows[0].finishPs - chunk.flows[0].startPs;
        fabric->Dispose();
        return fct;
    }

    void DoRun() override
    {
        const int64_t alone = Victim(false);
        const int64_t crowded = Victim(true);
        NS_TEST_ASSERT_MSG_GT(crowded, 2 * alone, "a flow that shares only full buffers suffers");
    }

    std::map<uint32_t, int64_t> m_firstStall; //!< first stall of each link
};

/**
 * @ingroup ub-fabric-test
 * @brief Virtual lanes.
 */
class UbVirtualLaneTestCase : public UbTestCase
{
  public:
    UbVirtualLaneTestCase()
        : UbTestCase("a blocked virtual lane does not block another, and lanes take turns")
    {
    }

  private:
    /**
     * A packet leaves.
     * @param [in] link Its link.
     * @param [in] flow Its flow.
     */
    void Sent(uint32_t link, uint32_t flow, uint32_t /* bytes */)
    {
        if (link == 0)
        {
            m_order.push_back(flow);
        }
    }

    /**
     * @param [in] nLanes Virtual lanes.
     * @return Completion time of the flow past a blocked one.
     */
    int64_t PastBlocked(uint32_t nLanes)
    {
        UbStartSimulation();
        UbTestChain chain;
        chain.nSwitches = 2;
        chain.nDestinations = 2;
        chain.lastRateBytesPerS = chain.rateBytesPerS / 100;
        chain.bufferBytes = 2 * (4096 + HEADER_BYTES);
        const auto fabric = BuildChain(chain, 4096, nLanes);
        UbTestChunk chunk;
        chunk.AddFlow(chain.sources[0], chain.destinations[0], 40, 4096);
        chunk.AddFlow(chain.sources[0],
                      chain.destinations[1],
                      1,
                      4096,
                      20'000'000,
                      static_cast<uint8_t>(nLanes - 1));
        RunChunk(fabric, chunk);
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        const int64_t fct = chunk.flows[1].finishPs - chunk.flows[1].startPs;
        const int64_t serialise = UbTestWirePs(4096 + HEADER_BYTES, chain.rateBytesPerS);
        const int64_t lone = chain.PathPs() + serialise + 1000;
        if (nLanes > 1)
        {
            // lane 0 sends a packet now and then, so a port may be busy with one at each hop
            NS_TEST_EXPECT_MSG_LT_OR_EQ(fct, lone + 2 * serialise, "lane 1 is free");
        }
        else
        {
            NS_TEST_EXPECT_MSG_GT(fct, 10 * lone, "on one lane it is stuck behind the other flow");
        }
        fabric->Dispose();
        return fct;
    }

    void DoRun() override
    {
        PastBlocked(1);
        PastBlocked(2);
        PastBlocked(16);

        UbStartSimulation();
        UbTestChain chain;
        const auto fabric = BuildChain(chain, 4096, 3);
        fabric->TraceConnectWithoutContext("PacketSent",
                                           MakeCallback(&UbVirtualLaneTestCase::Sent, this));
        UbTestChunk chunk;
        for (uint8_t lane = 0; lane < 3; ++lane)
        {
            chunk.AddFlow(chain.sources[0], chain.destinations[0], 10, 4096, 0, lane);
        }
        RunChunk(fabric, chunk);
        std::map<uint32_t, uint32_t> count;
        for (uint32_t i = 0; i < m_order.size(); ++i)
        {
            ++count[m_order[i]];
            const auto [least, most] = std::minmax({count[0], count[1], count[2]});
            NS_TEST_ASSERT_MSG_LT_OR_EQ(most - least, 1, "turn " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(m_order.size(), 30, "all sent");
        NS_TEST_ASSERT_MSG_EQ(fabric->Leftover(), "", "left over");
    }

    std::vector<uint32_t> m_order; //!< flows on the first link
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of a plane: links, switches, credits.
 */
class UbPlaneTestSuite : public TestSuite
{
  public:
    UbPlaneTestSuite()
        : TestSuite("ub-plane", Type::UNIT)
    {
        for (const uint32_t nSwitches : {1U, 3U})
        {
            for (const uint32_t messageBytes : {1U, 512U, 4096U})
            {
                // the rate of a UB link, and two that divide nothing
                for (const uint64_t rate : {28'000'000'000ULL, 12'345'678'901ULL, 999'999'937ULL})
                {
                    AddTestCase(new UbLoneMessageTestCase(nSwitches, messageBytes, rate),
                                TestCase::Duration::QUICK);
                }
            }
        }
        using Multi = UbMultiPacketMessageTestCase;
        AddTestCase(new Multi(Multi::LINK), TestCase::Duration::QUICK);
        AddTestCase(new Multi(Multi::ENGINE), TestCase::Duration::QUICK);
        AddTestCase(new Multi(Multi::EGRESS), TestCase::Duration::QUICK);
        AddTestCase(new UbIssueTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbCutThroughTestCase(40'000'000'000), TestCase::Duration::QUICK);
        AddTestCase(new UbCutThroughTestCase(3'000'000'000), TestCase::Duration::QUICK);
        AddTestCase(new UbReadyFirstTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbFairShareTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbIncastTestCase(1 << 20), TestCase::Duration::QUICK);
        AddTestCase(new UbIncastTestCase(4096 + HEADER_BYTES), TestCase::Duration::QUICK);
        AddTestCase(new UbCreditRoundTripTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbBackPressureTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbVirtualLaneTestCase, TestCase::Duration::QUICK);
    }
};

static UbPlaneTestSuite g_ubPlaneTestSuite; ///< registers the suite
