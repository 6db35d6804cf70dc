// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

/**
 * @file
 * @ingroup ub-fabric-test
 * Planes over MPI. The suite starts its own program under mpiexec, with a scenario in the
 * environment; there each rank runs the scenario alone and then its part of it, and compares.
 * Without MPI, or without mpiexec, it says that it was skipped.
 */

#include "ns3/test.h"

#include <iostream>

#ifdef NS3_MPI

#include "ub-test-case.h"

#include "ns3/boolean.h"
#include "ns3/callback.h"
#include "ns3/mac48-address.h"
#include "ns3/mpi-interface.h"
#include "ns3/mpi-receiver.h"
#include "ns3/node.h"
#include "ns3/packet.h"
#include "ns3/pointer.h"
#include "ns3/simple-channel.h"
#include "ns3/simple-net-device.h"
#include "ns3/ub-mpi-exchange.h"
#include "ns3/uinteger.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <memory>

#endif // NS3_MPI

using namespace ns3;

#ifdef NS3_MPI

namespace
{

/// Name of the suite.
constexpr const char* SUITE = "ub-mpi";

/// Environment variable that holds the scenario of a rank.
constexpr const char* SCENARIO = "UB_MPI_SCENARIO";

constexpr uint32_t RANKS = 6;             //!< endpoints
constexpr uint32_t PLANES = 5;            //!< planes, a hub each
constexpr uint32_t LAYERS = 3;            //!< rounds of messages between all
constexpr uint64_t RATE = 20'000'000'000; //!< of the links, in bytes per second
constexpr uint16_t PROTOCOL = 0x88b5;     //!< of packets of devices

/// What a rank runs.
struct Scenario
{
    std::string name;      //!< in the environment
    const char* transport; //!< of the UB network
    bool isFaulty;         //!< links go down, change and lose bits, a switch dies
    bool breaks;           //!< a link gives up for good, and the watchdog ends the run
    bool isWatched;        //!< the last rank listens; links are sampled
    bool isLoadedLate;     //!< a layer is loaded when it is needed; runs pause in between
    bool hasDevices;       //!< ordinary packets beside the flows
    bool isDistributed;    //!< under DistributedSimulatorImpl, else under UbSimulatorImpl
    const char* owners;    //!< which rank runs which plane
    bool isSpread;         //!< each rank has nodes of its own
};

const Scenario SCENARIOS[] = {
    {"plain", "ns3::UbPosted", false, false, false, false, false, false, "", false},
    {"faulty",
     "ns3::UbReliable[Mtu=1000|Timeout=5us|BackOff=1|RetryLimit=31]",
     true,
     false,
     false,
     false,
     false,
     false,
     "0",
     false},
    {"broken", "ns3::UbPosted", false, true, false, false, false, false, "", false},
    {"watched", "ns3::UbPosted", true, false, true, false, false, false, "", false},
    {"late",
     "ns3::UbReliable[Mtu=1000]",
     false,
     false,
     false,
     true,
     false,
     false,
     "0 0 0 0 0",
     false},
    {"devices", "ns3::UbPosted", true, false, false, false, true, false, "", false},
    {"nodes", "ns3::UbPosted", true, false, false, false, true, false, "", true},
    {"nodes-late", "ns3::UbPosted", false, false, false, true, true, false, "0 0", true},
    {"distributed-faulty",
     "ns3::UbReliable[Mtu=1000|Timeout=5us|BackOff=1|RetryLimit=31]",
     true,
     false,
     false,
     false,
     false,
     true,
     "",
     false},
    {"distributed-watched", "ns3::UbPosted", false, false, true, false, false, true, "", false},
    {"distributed-late", "ns3::UbPosted", false, false, false, true, false, true, "", false},
    {"distributed-devices", "ns3::UbPosted", false, false, false, false, true, true, "", false},
};

/// What comes of a run.
struct Outcome
{
    std::vector<UbTestChunk> chunks;                    //!< flows and tasks
    std::vector<UbFlowAccount> accounts;                //!< of the flows of the first chunk
    std::vector<UbLinkStats> links;                     //!< of all links
    std::vector<UbFabric::Sample> samples;              //!< of all links
    std::vector<std::pair<uint32_t, int64_t>> broken;   //!< links that gave up
    std::vector<uint32_t> stalled;                      //!< links that hold packets
    std::vector<std::pair<uint32_t, int64_t>> received; //!< by devices: node and time
    std::array<uint64_t, 4> counts{};                   //!< hops, lost, sent, delivered bytes
    std::string leftover;                               //!< what is left
    bool isStalled{false};                              //!< the watchdog ended it
    int64_t endPs{0};                                   //!< the simulator's last time
    uint64_t nPauses{0};                                //!< how often the run paused
    uint64_t nSeen{0};                                  //!< packets that the listener saw
    uint64_t nPassed{0};                                //!< messages of ordinary models
};

/**
 * Passes packets round the ranks over ns3's own remote channels, beside the fabric.
 */
class Ring
{
  public:
    /**
     * @param [in] delay Of each channel.
     */
    explicit Ring(Time delay)
        : m_delay(delay)
    {
        const uint32_t size = MpiInterface::GetSize();
        for (uint32_t rank = 0; rank < size; ++rank)
        {
            m_nodes.push_back(CreateObject<Node>(rank));
        }
        for (uint32_t rank = 0; rank < size && size > 1; ++rank)
        {
            const auto channel = CreateObject<SimpleChannel>();
            channel->SetAttribute("Delay", TimeValue(delay));
            for (const uint32_t end : {rank, (rank + 1) % size})
            {
                const auto device = CreateObject<SimpleNetDevice>();
                device->SetAttribute("PointToPointMode", BooleanValue(true));
                device->SetChannel(channel);
                m_nodes[end]->AddDevice(device);
                const auto receiver = CreateObject<MpiReceiver>();
                receiver->SetReceiveCallback(MakeCallback(&Ring::Receive, this));
                device->AggregateObject(receiver);
            }
        }
        if (MpiInterface::GetSystemId() == 0 && size > 1)
        {
            Simulator::Schedule(delay, &Ring::Receive, this, Create<Packet>(10));
        }
    }

    /// @return Packets that this rank passed on.
    uint64_t GetPassed() const
    {
        return m_nPassed;
    }

  private:
    /**
     * Pass a packet on, for 20 us.
     * @param [in] packet The packet.
     */
    void Receive(Ptr<Packet> packet)
    {
        if (Simulator::Now() < MicroSeconds(20))
        {
            ++m_nPassed;
            const uint32_t next = (MpiInterface::GetSystemId() + 1) % MpiInterface::GetSize();
            MpiInterface::SendPacket(packet,
                                     Simulator::Now() + m_delay,
                                     m_nodes[next]->GetId(),
                                     m_nodes[next]->GetDevice(0)->GetIfIndex());
        }
    }

    Time m_delay;                   //!< of each channel
    std::vector<Ptr<Node>> m_nodes; //!< one a rank
    uint64_t m_nPassed{0};          //!< packets passed on
};

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief A scenario on one rank of several, beside the same on none.
 */
class UbMpiRankTestCase : public UbTestCase
{
  public:
    /**
     * @param [in] scenario What to run.
     */
    explicit UbMpiRankTestCase(const Scenario& scenario)
        : UbTestCase("planes on several ranks give the times of one process: " + scenario.name),
          m_scenario(scenario)
    {
    }

  private:
    /**
     * Add a layer: all ranks send to all, after what they did before.
     * @param [in] layer Its number.
     * @param [in] first Number of the first task of the chunk.
     * @param [in,out] chunk Where to add it.
     */
    static void AddLayer(uint32_t layer, uint64_t first, UbTestChunk& chunk)
    {
        for (uint32_t rank = 0; rank < RANKS; ++rank)
        {
            std::vector<uint64_t> deps;
            if (layer > 0)
            {
                deps.push_back((layer - 1) * RANKS + rank);
            }
            chunk.AddTask(rank, rank, 20'000 * (rank + 1), deps);
        }
        const auto base = static_cast<uint32_t>(layer * RANKS - first);
        for (uint32_t src = 0; src < RANKS; ++src)
        {
            for (uint32_t dst = 0; dst < RANKS; ++dst)
            {
                chunk.AddFlowOfTask(base + src,
                                    base + dst,
                                    dst,
                                    1 + (src + dst) % 3,
                                    4000 + 100 * src);
            }
        }
    }

    /**
     * @param [in] exchange How ranks talk, nullptr to run alone.
     * @return The fabric.
     */
    Ptr<UbFabric> Build(Ptr<UbPlaneExchange> exchange)
    {
        UbFabricHelper helper;
        helper.SetFabricAttribute("PayloadBytes", UintegerValue(1500));
        helper.SetFabricAttribute("UbTransport", StringValue(m_scenario.transport));
        helper.SetFabricAttribute("Allocator", StringValue("Islip"));
        helper.SetFabricAttribute("CreditReturn", StringValue("Piggyback"));
        helper.SetFabricAttribute("Exchange", PointerValue(exchange));
        helper.SetFabricAttribute("KeepAccount", BooleanValue(true));
        // in one scenario: many threads of many ranks on few cores are slow
        const bool hasThreads = exchange && m_scenario.name == "faulty";
        helper.SetFabricAttribute("Threads", UintegerValue(hasThreads ? 2 : 1));
        helper.SetFabricAttribute("ThreadHops", UintegerValue(1));
        if (m_scenario.isWatched)
        {
            helper.SetFabricAttribute("SampleInterval", TimeValue(MicroSeconds(1)));
        }
        if (m_scenario.breaks)
        {
            helper.SetFabricAttribute("RetryLimit", UintegerValue(1));
            helper.SetFabricAttribute("RetrainLimit", UintegerValue(0));
            helper.SetFabricAttribute("Watchdog", TimeValue(MicroSeconds(30)));
        }
        UbEndpointParameters endpoint;
        endpoint.issueCost = NanoSeconds(3);
        endpoint.receiveLatency = NanoSeconds(90);
        std::vector<uint32_t> endpoints;
        for (uint32_t rank = 0; rank < RANKS; ++rank)
        {
            endpoints.push_back(helper.AddEndpoint(endpoint));
        }
        std::vector<uint32_t> hubs;
        for (uint32_t plane = 0; plane < PLANES; ++plane)
        {
            hubs.push_back(helper.AddSwitch(NanoSeconds(50), 4096));
            for (uint32_t rank = 0; rank < RANKS; ++rank)
            {
                helper.Connect(rank, hubs.back(), plane, UbTestRate(RATE), NanoSeconds(7));
            }
        }
        const auto fabric = helper.Build();
        if (m_scenario.hasDevices)
        {
            NodeContainer nodes;
            for (uint32_t i = 0; i < RANKS; ++i)
            {
                nodes.Create(1, i % MpiInterface::GetSize());
            }
            m_devices = helper.Install(fabric, nodes, endpoints);
            for (uint32_t i = 0; i < RANKS; ++i)
            {
                nodes.Get(i)->RegisterProtocolHandler(
                    MakeCallback(&UbMpiRankTestCase::Receive, this),
                    PROTOCOL,
                    m_devices.Get(i));
                if (!exchange || IsHere(i))
                {
                    Simulator::ScheduleWithContext(nodes.Get(i)->GetId(),
                                                   NanoSeconds(100 + 17 * i),
                                                   &UbMpiRankTestCase::Send,
                                                   this,
                                                   i,
                                                   12);
                }
            }
        }
        if (m_scenario.isFaulty)
        {
            fabric->ScheduleLink(300'000, 1, RATE, 2e-5);
            fabric->ScheduleLink(500'000, 5, 0, 0);
            fabric->ScheduleLink(900'000, 14, RATE / 2, 0);
            fabric->ScheduleLink(2'500'000, 5, RATE, 0);
            if (std::string(m_scenario.transport) != "ns3::UbPosted")
            {
                fabric->ScheduleSwitch(1'100'000, hubs[3], true);
                fabric->ScheduleSwitch(1'900'000, hubs[3], false);
            }
        }
        if (m_scenario.breaks)
        {
            fabric->ScheduleLink(600'000, 2 * RANKS + 2, RATE, 1e-3);
            fabric->ScheduleLink(700'000, 4 * RANKS + 4, RATE, 1e-3);
            // long after the last packet: the watchdog looks when something happens
            fabric->ScheduleLink(90'000'000, 3, RATE, 0);
            fabric->ReportBrokenLinks();
        }
        return fabric;
    }

    /**
     * @param [in] i Number of a device.
     * @return Whether its ordinary events run on this rank.
     */
    bool IsHere(uint32_t i) const
    {
        return !m_scenario.isSpread || i % MpiInterface::GetSize() == MpiInterface::GetSystemId();
    }

    /**
     * Send a packet from a device to the next.
     * @param [in] i Number of the device.
     * @param [in] left How often the packet goes on.
     */
    void Send(uint32_t i, uint32_t left)
    {
        const uint32_t next = (i + 1 + left % 3) % RANKS;
        const std::string text(100 + 50 * left, static_cast<char>(left));
        m_devices.Get(i)->Send(
            Create<Packet>(reinterpret_cast<const uint8_t*>(text.data()), text.size()),
            m_devices.Get(next)->GetAddress(),
            PROTOCOL);
    }

    /**
     * A device received a packet.
     * @param [in] device The device.
     * @param [in] packet The packet.
     */
    void Receive(Ptr<NetDevice> device,
                 Ptr<const Packet> packet,
                 uint16_t /* protocol */,
                 const Address& /* from */,
                 const Address& /* to */,
                 NetDevice::PacketType /* type */)
    {
        uint32_t i = 0;
        while (m_devices.Get(i) != device)
        {
            ++i;
        }
        m_received.emplace_back(i, Simulator::Now().GetTimeStep());
        const uint32_t left = (packet->GetSize() - 100) / 50;
        if (left > 0)
        {
            Simulator::Schedule(NanoSeconds(3 * i), &UbMpiRankTestCase::Send, this, i, left - 1);
        }
    }

    /**
     * A packet leaves on a link.
     */
    void See(uint32_t /* link */, uint32_t /* flow */, uint32_t /* bytes */)
    {
        ++m_nSeen;
    }

    /**
     * Run the scenario.
     * @param [in] exchange How ranks talk, nullptr to run alone.
     * @param [in] listens Whether to listen, if anybody does.
     * @param [out] outcome What came of it.
     */
    void RunScenario(Ptr<UbPlaneExchange> exchange, bool listens, Outcome& outcome)
    {
        m_received.clear();
        m_nSeen = 0;
        const auto fabric = Build(exchange);
        std::unique_ptr<Ring> ring;
        if (exchange && m_scenario.isDistributed)
        {
            ring = std::make_unique<Ring>(NanoSeconds(130));
        }
        if (m_scenario.isWatched && listens)
        {
            fabric->TraceConnectWithoutContext("PacketSent",
                                               MakeCallback(&UbMpiRankTestCase::See, this));
        }
        const uint32_t nChunks = m_scenario.isLoadedLate ? LAYERS : 1;
        outcome.chunks.resize(nChunks);
        const uint32_t nLayers = LAYERS / nChunks;
        for (uint32_t chunk = 0; chunk < nChunks; ++chunk)
        {
            const uint64_t first = uint64_t{chunk} * nLayers * RANKS;
            for (uint32_t layer = chunk * nLayers; layer < (chunk + 1) * nLayers; ++layer)
            {
                AddLayer(layer, first, outcome.chunks[chunk]);
            }
        }
        outcome.accounts.resize(outcome.chunks[0].flows.size());
        uint32_t nLoaded = 0;
        const auto load = [&]() {
            UbChunkArrays arrays =
                outcome.chunks[nLoaded].Arrays(uint64_t{nLoaded} * nLayers * RANKS,
                                               nLoaded + 1 == nChunks);
            arrays.accounts = nLoaded == 0 ? outcome.accounts.data() : nullptr;
            fabric->AddChunk(arrays);
            ++nLoaded;
        };
        load();
        fabric->StopAfter(m_scenario.isLoadedLate ? 100 : 0);
        Simulator::Run();
        while (fabric->HasPaused() && !fabric->IsStalled())
        {
            ++outcome.nPauses;
            const auto broken = fabric->TakeBrokenLinks();
            outcome.broken.insert(outcome.broken.end(), broken.begin(), broken.end());
            if (fabric->NeedsChunk())
            {
                load();
            }
            fabric->StopAfter(m_scenario.isLoadedLate ? 100 : 0);
            Simulator::Run();
        }
        outcome.endPs = Simulator::Now().GetTimeStep();
        outcome.isStalled = fabric->IsStalled();
        fabric->ReadLinkStats(outcome.links);
        fabric->ReadStalled(outcome.stalled);
        outcome.leftover = fabric->Leftover();
        outcome.samples = fabric->Samples();
        outcome.counts = {fabric->GetPacketHops(),
                          fabric->GetPacketsLost(),
                          fabric->GetPacketsSent(),
                          fabric->GetBytesDelivered()};
        outcome.received = m_received;
        outcome.nSeen = m_nSeen;
        outcome.nPassed = ring ? ring->GetPassed() : 0;
        fabric->Dispose();
    }

    /**
     * Compare what came of the parts with what came of the whole.
     * @param [in] alone The whole.
     * @param [in] together The parts.
     */
    void Compare(const Outcome& alone, const Outcome& together)
    {
        for (size_t chunk = 0; chunk < alone.chunks.size(); ++chunk)
        {
            const auto& flows = alone.chunks[chunk].flows;
            for (size_t i = 0; i < flows.size(); ++i)
            {
                const UbFlowRecord& flow = together.chunks[chunk].flows[i];
                NS_TEST_ASSERT_MSG_EQ(flow.startPs, flows[i].startPs, "start of flow " << i);
                NS_TEST_ASSERT_MSG_EQ(flow.firstBytePs, flows[i].firstBytePs, "of flow " << i);
                NS_TEST_ASSERT_MSG_EQ(flow.finishPs, flows[i].finishPs, "finish of flow " << i);
                NS_TEST_ASSERT_MSG_EQ(flow.queueingPs, flows[i].queueingPs, "of flow " << i);
            }
            const auto& tasks = alone.chunks[chunk].tasks;
            for (size_t i = 0; i < tasks.size(); ++i)
            {
                const UbTaskRecord& task = together.chunks[chunk].tasks[i];
                NS_TEST_ASSERT_MSG_EQ(task.startPs, tasks[i].startPs, "start of task " << i);
                NS_TEST_ASSERT_MSG_EQ(task.finishPs, tasks[i].finishPs, "finish of task " << i);
                NS_TEST_ASSERT_MSG_EQ(task.arrivedPs, tasks[i].arrivedPs, "of task " << i);
            }
        }
        for (size_t i = 0; i < alone.accounts.size(); ++i)
        {
            const UbFlowAccount& a = alone.accounts[i];
            const UbFlowAccount& t = together.accounts[i];
            NS_TEST_ASSERT_MSG_EQ(t.sourceWaitPs, a.sourceWaitPs, "account of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(t.waitPs[0], a.waitPs[0], "account of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(t.serialisePs, a.serialisePs, "account of flow " << i);
            NS_TEST_ASSERT_MSG_EQ(t.switchPs, a.switchPs, "account of flow " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(together.links.size(), alone.links.size(), "links");
        for (size_t i = 0; i < alone.links.size(); ++i)
        {
            const UbLinkStats& a = alone.links[i];
            const UbLinkStats& t = together.links[i];
            NS_TEST_ASSERT_MSG_EQ(t.packets, a.packets, "packets of link " << i);
            NS_TEST_ASSERT_MSG_EQ(t.bytes, a.bytes, "bytes of link " << i);
            NS_TEST_ASSERT_MSG_EQ(t.busyPs, a.busyPs, "busy time of link " << i);
            NS_TEST_ASSERT_MSG_EQ(t.maxQueueBytes, a.maxQueueBytes, "queue of link " << i);
            NS_TEST_ASSERT_MSG_EQ(t.noCreditPs, a.noCreditPs, "credits of link " << i);
            NS_TEST_ASSERT_MSG_EQ(t.retries, a.retries, "retries of link " << i);
        }
        NS_TEST_ASSERT_MSG_EQ(together.samples.size(), alone.samples.size(), "samples");
        for (size_t i = 0; i < alone.samples.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(together.samples[i].timePs, alone.samples[i].timePs, "sample");
            NS_TEST_ASSERT_MSG_EQ((together.samples[i].bytes == alone.samples[i].bytes),
                                  true,
                                  "bytes of sample " << i);
            NS_TEST_ASSERT_MSG_EQ(
                (together.samples[i].waitingBytes == alone.samples[i].waitingBytes),
                true,
                "bytes that wait in sample " << i);
        }
        NS_TEST_ASSERT_MSG_EQ((together.broken == alone.broken), true, "links that gave up");
        NS_TEST_ASSERT_MSG_EQ((together.stalled == alone.stalled), true, "links that hold packets");
        NS_TEST_ASSERT_MSG_EQ(together.leftover, alone.leftover, "left over");
        NS_TEST_ASSERT_MSG_EQ(together.isStalled, alone.isStalled, "watchdog");
        std::vector<std::pair<uint32_t, int64_t>> received;
        std::copy_if(alone.received.begin(),
                     alone.received.end(),
                     std::back_inserter(received),
                     [this](const auto& packet) { return IsHere(packet.first); });
        NS_TEST_ASSERT_MSG_EQ(together.received.size(), received.size(), "packets received");
        NS_TEST_ASSERT_MSG_EQ((together.received == received), true, "packets of devices");
        for (size_t i = 0; i < alone.counts.size(); ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(together.counts[i], alone.counts[i], "count " << i);
        }
        if (!m_scenario.isDistributed && !m_scenario.isSpread)
        {
            NS_TEST_ASSERT_MSG_EQ(together.endPs, alone.endPs, "end");
            NS_TEST_ASSERT_MSG_EQ(together.nPauses, alone.nPauses, "pauses");
        }
    }

    /**
     * See that the scenario shows what it is there for, or nothing is compared.
     * @param [in] alone What came of it.
     */
    void CheckScenario(const Outcome& alone)
    {
        uint64_t retries = 0;
        for (const UbLinkStats& link : alone.links)
        {
            retries += link.retries;
        }
        NS_TEST_ASSERT_MSG_EQ((retries > 0), (m_scenario.isFaulty || m_scenario.breaks), "retries");
        NS_TEST_ASSERT_MSG_EQ(alone.leftover.empty(), !m_scenario.breaks, alone.leftover);
        NS_TEST_ASSERT_MSG_EQ(alone.broken.empty(), !m_scenario.breaks, "links gave up");
        NS_TEST_ASSERT_MSG_EQ(alone.isStalled, m_scenario.breaks, "watchdog");
        NS_TEST_ASSERT_MSG_EQ(alone.stalled.empty(), !m_scenario.breaks, "links hold packets");
        NS_TEST_ASSERT_MSG_EQ(alone.samples.empty(), !m_scenario.isWatched, "samples");
        NS_TEST_ASSERT_MSG_EQ((alone.nPauses > LAYERS), m_scenario.isLoadedLate, "pauses");
        NS_TEST_ASSERT_MSG_EQ(alone.received.size(),
                              (m_scenario.hasDevices ? 13 * RANKS : 0),
                              "packets of devices");
        const bool losesPackets =
            m_scenario.isFaulty && std::string(m_scenario.transport) != "ns3::UbPosted";
        NS_TEST_ASSERT_MSG_EQ((alone.counts[1] > 0), losesPackets, "packets lost");
    }

    void DoRun() override
    {
        MpiInterface::Enable(nullptr, nullptr);
        const uint32_t rank = MpiInterface::GetSystemId();
        const uint32_t size = MpiInterface::GetSize();
        UbStartSimulation();
        Outcome alone;
        RunScenario(nullptr, true, alone);
        CheckScenario(alone);

        UbStartSimulation(m_scenario.isDistributed ? "ns3::DistributedSimulatorImpl"
                                                   : "ns3::UbSimulatorImpl");
        const auto exchange = CreateObject<UbMpiExchange>();
        exchange->SetAttribute("Owners", StringValue(m_scenario.owners));
        exchange->SetAttribute("SpreadNodes", BooleanValue(m_scenario.isSpread));
        Outcome together;
        RunScenario(exchange, rank == size - 1, together);
        NS_TEST_EXPECT_MSG_EQ(Simulator::GetSystemId(), rank, "the simulator's rank");
        Compare(alone, together);
        if (m_scenario.isWatched && rank == size - 1)
        {
            // links are numbered as cables are laid, 2 * RANKS a plane
            uint64_t sent = 0;
            for (uint32_t link = 0; link < together.links.size(); ++link)
            {
                const uint32_t owner = (link / (2 * RANKS)) % size;
                sent += owner == rank ? together.links[link].packets : 0;
            }
            NS_TEST_ASSERT_MSG_EQ(together.nSeen, sent, "packets seen on links of this rank");
        }
        if (m_scenario.isDistributed && size > 1)
        {
            NS_TEST_ASSERT_MSG_EQ((together.nPassed > 20), true, "packets between ordinary models");
        }
        // a name for each, or the last line of a rank that died would look like success
        std::cout << "rank " << rank << " of " << size << " done\n";
        Simulator::Destroy();
        MpiInterface::Disable();
    }

    Scenario m_scenario;                                  //!< what to run
    NetDeviceContainer m_devices;                         //!< devices, if there are
    std::vector<std::pair<uint32_t, int64_t>> m_received; //!< what they received: node, time
    uint64_t m_nSeen{0};                                  //!< packets that left, as listened to
};

/**
 * @ingroup ub-fabric-test
 * @brief Start the ranks of a scenario.
 */
class UbMpiLaunchTestCase : public TestCase
{
  public:
    /**
     * @param [in] scenario The scenario.
     * @param [in] nRanks Number of ranks.
     */
    UbMpiLaunchTestCase(const Scenario& scenario, uint32_t nRanks)
        : TestCase(scenario.name + " on " + std::to_string(nRanks) + " ranks"),
          m_scenario(scenario),
          m_nRanks(nRanks)
    {
    }

  private:
    void DoRun() override
    {
        std::error_code error;
        const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
        if (error || std::system("mpiexec -n 1 true > /dev/null 2>&1") != 0)
        {
            std::cout << SUITE << ": " << GetName() << ": skipped: "
                      << (error ? "the path of this program is not known"
                                : "\"mpiexec -n 1 true\" fails here")
                      << "\n";
            return;
        }
        setenv(SCENARIO, m_scenario.name.c_str(), 1);
        // more ranks than cores, in the words of two MPIs
        setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
        setenv("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe", 0);
        setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
        setenv("MPIEXEC_TIMEOUT", "60", 0); // ranks that wait for each other wait for ever
        const std::string command = "mpiexec -n " + std::to_string(m_nRanks) + " '" +
                                    self.string() + "' --suite=" + SUITE + " 2>&1";
        std::string output;
        FILE* const pipe = popen(command.c_str(), "r");
        NS_TEST_ASSERT_MSG_NE(pipe, nullptr, "cannot run " << command);
        std::array<char, 4096> buffer;
        while (fgets(buffer.data(), buffer.size(), pipe) != nullptr)
        {
            output += buffer.data();
        }
        const int status = pclose(pipe);
        unsetenv(SCENARIO);
        NS_TEST_EXPECT_MSG_EQ(status, 0, command << "\n" << output);
        for (uint32_t rank = 0; rank < m_nRanks; ++rank)
        {
            const std::string line =
                "rank " + std::to_string(rank) + " of " + std::to_string(m_nRanks) + " done";
            NS_TEST_EXPECT_MSG_NE(output.find(line), std::string::npos, line << "\n" << output);
        }
    }

    Scenario m_scenario; //!< the scenario
    uint32_t m_nRanks;   //!< number of ranks
};

#else

/**
 * @ingroup ub-fabric-test
 * @brief What there is to say without MPI.
 */
class UbMpiSkippedTestCase : public TestCase
{
  public:
    UbMpiSkippedTestCase()
        : TestCase("skipped: ns-3 was built without MPI (configure it with --enable-mpi)")
    {
    }

  private:
    void DoRun() override
    {
        std::cout << "ub-mpi: " << GetName() << "\n";
    }
};

#endif // NS3_MPI

/**
 * @ingroup ub-fabric-test
 * @brief Planes over MPI.
 */
class UbMpiTestSuite : public TestSuite
{
  public:
    UbMpiTestSuite()
        : TestSuite("ub-mpi", Type::SYSTEM)
    {
#ifdef NS3_MPI
        const char* const name = std::getenv(SCENARIO);
        for (const Scenario& scenario : SCENARIOS)
        {
            if (name != nullptr)
            {
                if (scenario.name == name)
                {
                    AddTestCase(new UbMpiRankTestCase(scenario), Duration::QUICK);
                }
                continue;
            }
            for (const uint32_t nRanks : {1U, 2U, 3U})
            {
                AddTestCase(new UbMpiLaunchTestCase(scenario, nRanks), Duration::QUICK);
            }
        }
#else
        AddTestCase(new UbMpiSkippedTestCase, Duration::QUICK);
#endif
    }
};

static UbMpiTestSuite g_ubMpiTestSuite; //!< the suite
