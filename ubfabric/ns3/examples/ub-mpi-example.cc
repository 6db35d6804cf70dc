// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

/**
 * @file
 * @ingroup ub-fabric
 * All endpoints send to all, layer after layer, over planes that run on the ranks of MPI.
 *
 *     mpiexec -n 2 ./ns3.44-ub-mpi-example-default --endpoints=64
 *
 * Each plane has a leaf switch for every 16 endpoints, and 8 spines. Rank 0 prints the makespan,
 * which does not depend on the number of ranks; each rank prints its time and its memory.
 */

#include "ns3/command-line.h"
#include "ns3/global-value.h"
#include "ns3/mpi-interface.h"
#include "ns3/pointer.h"
#include "ns3/simulator.h"
#include "ns3/string.h"
#include "ns3/ub-fabric-helper.h"
#include "ns3/ub-mpi-exchange.h"
#include "ns3/uinteger.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <sstream>
#include <sys/resource.h>
#include <vector>

using namespace ns3;

int
main(int argc, char* argv[])
{
    uint32_t nEndpoints = 64;
    uint32_t nPlanes = 7;
    uint32_t nLayers = 4;
    uint32_t messageBytes = 7168;
    uint32_t payloadBytes = 512;
    uint32_t nThreads = 1;
    bool isAlone = false;
    CommandLine cmd(__FILE__);
    cmd.AddValue("endpoints", "Number of endpoints", nEndpoints);
    cmd.AddValue("planes", "Number of planes", nPlanes);
    cmd.AddValue("layers", "Rounds of messages between all", nLayers);
    cmd.AddValue("bytes", "Bytes of a message", messageBytes);
    cmd.AddValue("payload", "Bytes of a message in one packet", payloadBytes);
    cmd.AddValue("threads", "Threads of each rank", nThreads);
    cmd.AddValue("alone", "Let each rank run all planes, to compare with", isAlone);
    cmd.Parse(argc, argv);

    Time::SetResolution(Time::PS);
    MpiInterface::Enable(&argc, &argv);
    // Enable has chosen DistributedSimulatorImpl; this one is faster where there are no channels
    // of ns-3 between the ranks.
    GlobalValue::Bind("SimulatorImplementationType", StringValue("ns3::UbSimulatorImpl"));

    UbFabricHelper helper;
    if (!isAlone)
    {
        helper.SetFabricAttribute("Exchange", PointerValue(CreateObject<UbMpiExchange>()));
    }
    helper.SetFabricAttribute("PayloadBytes", UintegerValue(payloadBytes));
    helper.SetFabricAttribute("Allocator", StringValue("Islip"));
    helper.SetFabricAttribute("CreditReturn", StringValue("Piggyback"));
    helper.SetFabricAttribute("Threads", UintegerValue(nThreads));
    UbEndpointParameters parameters;
    parameters.issueCost = NanoSeconds(20);
    parameters.issueEngines = 8;
    parameters.receiveLatency = NanoSeconds(400);
    for (uint32_t i = 0; i < nEndpoints; ++i)
    {
        helper.AddEndpoint(parameters);
    }
    for (uint32_t plane = 0; plane < nPlanes; ++plane)
    {
        std::vector<uint32_t> spines(8);
        for (uint32_t& spine : spines)
        {
            spine = helper.AddSwitch(NanoSeconds(125), 65536);
        }
        uint32_t leaf = 0;
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            if (i % 16 == 0)
            {
                leaf = helper.AddSwitch(NanoSeconds(125), 65536);
                for (const uint32_t spine : spines)
                {
                    helper.Connect(leaf, spine, plane, DataRate("448Gbps"), NanoSeconds(50));
                }
            }
            helper.Connect(i, leaf, plane, DataRate("224Gbps"), NanoSeconds(10));
        }
    }
    const auto fabric = helper.Build();

    // task (layer, i): send to all, wait for all; after task (layer - 1, i)
    std::vector<UbTaskRecord> tasks;
    std::vector<UbFlowRecord> flows;
    std::vector<uint32_t> sendOrder;
    std::vector<uint64_t> depStart{0};
    std::vector<uint64_t> deps;
    for (uint32_t layer = 0; layer < nLayers; ++layer)
    {
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            UbTaskRecord task{};
            task.endpoint = i;
            task.stream = i;
            task.durationPs = 1'000'000;
            task.flowsLeft = nEndpoints - 1;
            task.sendFirst = static_cast<uint32_t>(flows.size());
            task.sendCount = nEndpoints - 1;
            for (uint32_t step = 1; step < nEndpoints; ++step)
            {
                UbFlowRecord flow{};
                flow.src = i;
                flow.dst = (i + step) % nEndpoints;
                flow.messages = 1;
                flow.messageBytes = messageBytes;
                flow.sendTask = static_cast<uint32_t>(tasks.size());
                flow.waitTask = layer * nEndpoints + flow.dst;
                sendOrder.push_back(static_cast<uint32_t>(flows.size()));
                flows.push_back(flow);
            }
            if (layer > 0)
            {
                deps.push_back(tasks.size() - nEndpoints);
            }
            depStart.push_back(deps.size());
            tasks.push_back(task);
        }
    }
    UbChunkArrays chunk;
    chunk.flows = flows.data();
    chunk.nFlows = static_cast<uint32_t>(flows.size());
    chunk.tasks = tasks.data();
    chunk.nTasks = static_cast<uint32_t>(tasks.size());
    chunk.sendOrder = sendOrder.data();
    chunk.depStart = depStart.data();
    chunk.deps = deps.data();
    fabric->AddChunk(chunk);
    const auto begin = std::chrono::steady_clock::now();
    Simulator::Run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

    const std::string left = fabric->Leftover(); // on all ranks: each waits for the others
    int64_t makespanPs = 0;
    for (const auto& task : tasks)
    {
        makespanPs = std::max(makespanPs, task.finishPs);
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::ostringstream line;
    if (MpiInterface::GetSystemId() == 0)
    {
        line << "makespan " << PicoSeconds(makespanPs).As(Time::NS) << ", "
             << fabric->GetPacketHops() << " packet-hops\n";
    }
    line << "rank " << MpiInterface::GetSystemId() << " of " << MpiInterface::GetSize() << ": "
         << took.count() << " s, " << usage.ru_maxrss / 1024 << " MiB at most\n"
         << (left.empty() ? "" : "not everything arrived: " + left + "\n");
    std::cout << line.str();
    fabric->Dispose();
    Simulator::Destroy();
    MpiInterface::Disable();
    return left.empty() ? 0 : 1;
}
