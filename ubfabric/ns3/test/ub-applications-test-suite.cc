// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/application-container.h"
#include "ns3/bulk-send-helper.h"
#include "ns3/callback.h"
#include "ns3/config.h"
#include "ns3/inet-socket-address.h"
#include "ns3/internet-stack-helper.h"
#include "ns3/ipv4-address-helper.h"
#include "ns3/node.h"
#include "ns3/packet-sink-helper.h"
#include "ns3/packet-sink.h"
#include "ns3/udp-echo-helper.h"
#include "ns3/uinteger.h"

using namespace ns3;

/**
 * @ingroup ub-fabric-test
 * @brief Stock applications over IPv4 beside a replay.
 */
class UbApplicationsTestCase : public UbTestCase
{
  public:
    /// @param [in] implementation TypeId of the SimulatorImpl.
    explicit UbApplicationsTestCase(const std::string& implementation)
        : UbTestCase("UDP echo and TCP bulk send run over the fabric beside a replay under " +
                     implementation),
          m_implementation(implementation)
    {
    }

  private:
    /// An echo has come back.
    void Echoed(Ptr<const Packet> /* packet */)
    {
        ++m_nEchoes;
        m_lastEchoPs = Simulator::Now().GetTimeStep();
    }

    void DoRun() override
    {
        UbStartSimulation(m_implementation);
        // ns-3 delays each ARP request by up to 10 ms and drops all but three packets meanwhile
        Config::SetDefault("ns3::ArpL3Protocol::RequestJitter",
                           StringValue("ns3::ConstantRandomVariable[Constant=0]"));
        Config::SetDefault("ns3::ArpCache::PendingQueueSize", UintegerValue(100));
        constexpr uint32_t nEndpoints = 4;
        constexpr uint32_t tcpBytes = 1'000'000;
        UbTestChain chain;
        chain.nSwitches = 3;
        chain.nSources = nEndpoints / 2;
        chain.nDestinations = nEndpoints / 2;
        chain.bufferBytes = 20'000;
        chain.endpoint.receiveLatency = NanoSeconds(500);
        UbFabricHelper helper;
        helper.SetFabricAttribute("UbTransport", UbTestPosted(64));
        chain.Build(helper);
        const auto fabric = helper.Build();
        std::vector<uint32_t> endpoints = chain.sources;
        endpoints.insert(endpoints.end(), chain.destinations.begin(), chain.destinations.end());

        NodeContainer nodes;
        nodes.Create(nEndpoints);
        const auto devices = helper.Install(fabric, nodes, endpoints);
        InternetStackHelper().Install(nodes);
        Ipv4AddressHelper addresses("10.0.0.0", "255.255.255.0");
        const auto interfaces = addresses.Assign(devices);

        UdpEchoServerHelper(9).Install(nodes.Get(2)).Start(Seconds(0));
        UdpEchoClientHelper echo(InetSocketAddress(interfaces.GetAddress(2), 9));
        echo.SetAttribute("MaxPackets", UintegerValue(10));
        echo.SetAttribute("Interval", TimeValue(MicroSeconds(20)));
        echo.SetAttribute("PacketSize", UintegerValue(1024));
        const auto client = echo.Install(nodes.Get(0));
        client.Start(MicroSeconds(1));
        client.Get(0)->TraceConnectWithoutContext(
            "Rx",
            MakeCallback(&UbApplicationsTestCase::Echoed, this));

        const InetSocketAddress target(interfaces.GetAddress(3), 5000);
        const auto sinks = PacketSinkHelper("ns3::TcpSocketFactory", target).Install(nodes.Get(3));
        sinks.Start(Seconds(0));
        BulkSendHelper bulk("ns3::TcpSocketFactory", target);
        bulk.SetAttribute("MaxBytes", UintegerValue(tcpBytes));
        bulk.Install(nodes.Get(1)).Start(MicroSeconds(1));

        UbTestChunk chunk;
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            chunk.AddFlow(endpoints[i], endpoints[nEndpoints - 1 - i], 200, 4096, 2'000'000);
        }
        fabric->AddChunk(chunk.Arrays());
        Simulator::Stop(MilliSeconds(50));
        Simulator::Run();

        NS_TEST_EXPECT_MSG_EQ(m_nEchoes, 10, "UDP echoes");
        NS_TEST_EXPECT_MSG_LT(m_lastEchoPs, 300'000'000, "the last echo is not late");
        const auto sink = DynamicCast<PacketSink>(sinks.Get(0));
        NS_TEST_EXPECT_MSG_EQ(sink->GetTotalRx(), tcpBytes, "bytes received over TCP");
        NS_TEST_EXPECT_MSG_EQ(fabric->TakeCompleteChunk(), 0, "the replay is complete");
        for (const UbFlowRecord& flow : chunk.flows)
        {
            NS_TEST_EXPECT_MSG_EQ(flow.packetsLeft, 0, "packets of the replay");
        }
        NS_TEST_EXPECT_MSG_EQ(fabric->Leftover(), "", "left over");
        fabric->Dispose();
        Config::Reset();
    }

    std::string m_implementation; //!< TypeId of the SimulatorImpl
    uint32_t m_nEchoes{0};        //!< echoes that came back
    int64_t m_lastEchoPs{0};      //!< when the last one did
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of ns-3's applications over the fabric; built where they are.
 */
class UbApplicationsTestSuite : public TestSuite
{
  public:
    UbApplicationsTestSuite()
        : TestSuite("ub-applications", Type::SYSTEM)
    {
        for (const auto* implementation : {"ns3::UbSimulatorImpl", "ns3::DefaultSimulatorImpl"})
        {
            AddTestCase(new UbApplicationsTestCase(implementation), TestCase::Duration::QUICK);
        }
    }
};

static UbApplicationsTestSuite g_ubApplicationsTestSuite; ///< registers the suite
